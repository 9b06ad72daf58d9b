import csv
import io
import itertools
import math
import re
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import xarray as xr

from rmtjax import CLAIMS, InputError
from rmtjax.montecarlo import judge
from rmtjax.montecarlo.verify import Verdict, verify
from rmtjax.report.charts import slope_of
from rmtjax.report.format import number
from rmtjax.report.mathml import mathml, spoken
from rmtjax.report.page import csv as csv_of
from rmtjax.report.page import page, write_page
from rmtjax.report.panels import Table
from rmtjax.report.svg import COLOURS, Scale

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Document(HTMLParser):
    """Elements with their attributes and text; open and close tags have to match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        one = {"tag": tag, **dict(attrs), "text": "", "inside": [e["tag"] for e in self.open]}
        self.elements.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for one in self.open:
            one["text"] += data

    def all(self, tag, **having):
        having = {k.rstrip("_"): v for k, v in having.items()}
        return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in having.items())]


def result(sizes=None, outputs=("value",), shift=0.0, seed=0, **attrs):
    """A result such as `run` returns, of a law 1 + 2x with noise."""
    sizes = {"x": 5} if sizes is None else sizes
    rng = np.random.default_rng(seed)
    dims = ("output", *sizes)
    shape = (len(outputs), *sizes.values())
    law = np.broadcast_to(1 + 2 * np.arange(shape[-1], dtype=float), shape).copy()
    se = np.full(shape, 0.01)
    z = rng.normal(size=shape)
    mean = law + se * z + shift
    variables = {n: (dims, v) for n, v in dict(mean=mean, se=se, law=law, z=(mean - law) / se).items()}
    variables["trials"] = (tuple(sizes), np.full(shape[1:], 100))
    coords = {"output": list(outputs), "fixed": ((), 0.5, {"long_name": "a thing that stays"})}
    coords |= {n: ((n,), np.linspace(0, 1, k), {"long_name": f"what {n} is"}) for n, k in sizes.items()}
    about = dict(claim="mine", equation=r"y = 1 + 2x", source="nowhere", method="direct", trials_per_cell=100, seed=3)
    return xr.Dataset(variables, coords, {**about, **attrs})


def document(*results, **options):
    return Document(page(judge(list(results)), **options))


def data_of(link):
    assert link["href"].startswith("data:text/csv;charset=utf-8,")
    return list(csv.DictReader(io.StringIO(unquote(link["href"].partition(",")[2]))))


def check(html):
    """Check the properties of every page."""
    found = Document(html)
    idents = [e["id"] for e in found.elements if "id" in e]
    assert len(idents) == len(set(idents))
    for link in found.all("a"):
        if not link["href"].startswith("data:"):
            assert link["href"][0] == "#"
            assert link["href"][1:] in idents
    for e in found.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(e.get(name, "").split()) <= set(idents)
        assert not {"src", "srcset", "action", "data"} & set(e)
        assert not any(name.startswith("on") for name in e)
        assert e.get("tabindex", "0") in ("0", "-1")
    assert {e["tag"] for e in found.elements} & {"iframe", "object", "embed", "img", "base", "form"} == set()
    assert "url(http" not in html
    assert "@import" not in html
    assert len(found.all("script")) == 1
    levels = [int(e["tag"][1]) for e in found.elements if re.fullmatch(r"h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    for tag in ("header", "main", "nav", "footer"):
        assert len(found.all(tag)) == 1
    for region in (e for e in found.elements if e.get("role") == "region"):
        assert region.get("aria-label")
    drawings = re.findall(r"<svg .*?</svg>", html, re.S)
    assert len(drawings) == len(found.all("svg", role="img"))
    for drawing in drawings:
        root = ET.fromstring(drawing)
        title, desc = root[0], root[1]
        assert title.text
        assert "z" in desc.text or "difference" in desc.text
        assert "nan" not in re.sub(r"<(title|desc).*?</\1>", "", drawing)
        assert "Infinity" not in drawing
        assert "inf" not in "".join(re.findall(r' (?:d|x|y)="[^"]*"', drawing))
    for button in found.all("button"):
        assert button["type"] == "button"
        assert button["text"].strip()
    return found


@pytest.fixture(scope="module")
def verdict():
    """A real one: limits with an allowance, several outputs, samplers compared, an erratum and its correction."""
    names = ("bbp-wigner", "erratum-rectangular-outlier", "corrected-rectangular-outlier")
    return verify([CLAIMS[name] for name in names], trials=400, progress=False)


@pytest.mark.thorough
def test_every_claim_of_a_verdict_is_there(verdict):
    html = page(verdict, CLAIMS.values())
    found = check(html)
    articles = {e["id"]: e for e in found.all("article") if e.get("class") == "claim"}
    assert set(articles) == {f.claim for f in verdict.findings}
    for name, article in articles.items():
        assert CLAIMS[name].source in article["text"]
        assert "seed" in article["text"]
        assert str(verdict.results[name, CLAIMS[name].sampler()[0]].attrs["versions"]) in article["text"]
    # Each claim's equation, and both of the pair that was printed and corrected.
    assert len(found.all("math")) == len(articles) + 2
    assert {m["alttext"] for m in found.all("math")} == {spoken(CLAIMS[n].equation) for n in articles}
    # A panel for each output, those of the comparison, one of convergence for the erratum; and all z together.
    labels = [e["id"] for e in found.all("svg")]
    assert sum(i.startswith("bbp-wigner--") for i in labels) == 4
    assert "strip" in labels
    buttons = found.all("button", class_="button svg")
    assert len(buttons) == len(labels)
    rows = [
        e
        for e in found.elements
        if e["tag"] == "tr" and e["inside"].count("section") == 1 and "article" not in e["inside"]
    ]
    assert len(rows) == 1 + len(verdict.findings)
    assert "error, refuted" in articles["erratum-rectangular-outlier"]["text"]
    printed = next(e for e in found.all("section") if e.get("id") == "printed")
    assert "2.5" in printed["text"]  # θ + 1/θ at θ = 2, which is printed for every c
    assert "3.16228" in printed["text"]  # √10, what it is at c = 4


def test_a_pages_data_are_the_results(verdict):
    found = Document(page(verdict, CLAIMS.values()))
    links = {e["download"]: e for e in found.all("a") if "download" in e}
    for (name, method), drawn in verdict.results.items():
        first = CLAIMS[name].sampler()[0]
        rows = data_of(links[f"{name}.csv" if method == first else f"{name}-{method}.csv"])
        dims = [d for d in drawn["mean"].dims if d != "output"]
        assert len(rows) == drawn["mean"].size
        for row in rows:
            cell = drawn.sel(output=row["output"], **{d: float(row[d]) for d in dims})
            assert float(row["mean"]) == cell["mean"].item()
            assert int(row["trials"]) == cell["trials"].item()
            if method == first:
                assert float(row["se"]) == cell["se"].item()
                assert float(row["law"]) == cell["law"].item()
                assert float(row["z"]) == cell["z"].item()
            else:
                there = verdict.references[name].sel(output=row["output"], **{d: float(row[d]) for d in dims})
                assert float(row[f"mean_{first}"]) == there["mean"].item()
                assert float(row["se"]) == pytest.approx(math.hypot(cell["se"].item(), there["se"].item()))
    tests = data_of(links["tests.csv"])
    assert [(t["claim"], t["output"]) for t in tests] == [(f.claim, f.output) for f in verdict.findings]
    assert [float(t["worst_z"]) for t in tests] == [f.z for f in verdict.findings]


def test_stored_results_are_judged_as_verify_does(verdict):
    first = [
        verdict.results[name, CLAIMS[name].sampler()[0]] for name in dict.fromkeys(f.claim for f in verdict.findings)
    ]
    again = judge(first, CLAIMS.values())
    ours = {(f.claim, f.output): f for f in verdict.findings if f.against == "law"}
    assert len(again.findings) == len(ours)
    for f in again.findings:
        there = ours[f.claim, f.output]
        assert (f.z, f.cell, f.mean, f.expected, f.erratum, f.tests) == (
            there.z, there.cell, there.mean, there.expected, there.erratum, there.tests,
        )  # fmt: skip
        assert f.holds == there.holds
    check(page(again, CLAIMS.values()))
    # A claim that has changed is another claim: its allowance is not used.
    other = judge([first[0].assign_attrs(equation="x")], CLAIMS.values())
    assert abs(other.findings[0].z) > abs(again.findings[0].z)
    assert "was not at hand" in Document(page(other, CLAIMS.values())).all("article")[0]["text"]


def test_one_claim_from_several_stores():
    again = judge([result(), result(seed=1), result(seed=2), result(method="dense")])
    assert len({f.claim for f in again.findings}) == 4
    found = check(page(again))
    assert len([e for e in found.all("article") if e.get("class") == "claim"]) == 4


def test_names_that_are_nearly_the_same():
    names = [
        "a b",
        "a-b",
        "A-B",
        "a-b-2",
        "a-b-law-0",
        "a-b-h",
        "a-b-figure",
        "main",
        "Strip",
        "theme",
        "",
        "…",
        "tests",
    ]
    found = check(page(judge([result(claim=name, seed=i) for i, name in enumerate(names)])))
    assert len([e for e in found.all("article") if e.get("class") == "claim"]) == len(names)
    files = [e["download"] for e in found.all("a") if "download" in e]
    assert len({f.lower() for f in files}) == len(files)


HOSTILE = '</script></svg><img src=x onerror="alert(1)">&"\''


def test_hostile_texts_are_texts():
    bad = result(
        outputs=(HOSTILE, "=cmd()"), claim=HOSTILE, source=HOSTILE, equation=rf"\text{{{HOSTILE}}}", method=HOSTILE
    )
    bad = bad.assign_attrs(option_x=HOSTILE, store=HOSTILE, device=HOSTILE, versions=HOSTILE)
    bad["x"].attrs["long_name"] = HOSTILE
    bad = bad.rename(x="=x<b>")
    html = page(judge([bad, bad]), title=HOSTILE)
    found = check(html)
    assert not found.all("b")
    assert HOSTILE in found.all("title")[0]["text"]
    assert found.all("h1")[0]["text"].strip() == HOSTILE
    rows = data_of(next(e for e in found.all("a") if e.get("download", "tests.csv") != "tests.csv"))
    assert {r["output"] for r in rows} == {HOSTILE, "'=cmd()"}
    assert "'=x<b>" in rows[0]
    for link in found.all("a"):
        assert re.fullmatch(r"[\w.-]+", link.get("download", "x"))


@pytest.mark.parametrize(
    "latex",
    ["", r"\frac{", r"\foo x", "a & b < c", "}{", r"\left( x", "<script>alert(1)</script>", r"\text{<img onerror=x>}",
     r"\href{javascript:alert(1)}{x}", r"\style{background:url(//x)}{b}", r"\color{red}x", "\x00", "%", r"\begin{x}", "\\",
     "$x$", r"\class{a}{b}", "&lt;img&gt;", r"\text{&lt;img src=x&gt;}"],
)  # fmt: skip
def test_any_equation_gives_a_page(latex):
    found = check(page(judge([result(equation=latex)])))
    allowed = {"math", "mrow", "mi", "mn", "mo", "mtext", "mfrac", "msup", "msub", "mstyle", "mspace"}
    for e in found.elements:
        if "math" in e["inside"]:
            assert e["tag"] in allowed
            assert not {"href", "style", "class", "id"} & set(e)


def test_every_equation_of_the_package_is_typeset():
    for claim in CLAIMS.values():
        made = mathml(claim.equation)
        assert made is not None, claim.name
        root = ET.fromstring(made)
        assert "\\" not in "".join(root.itertext()), claim.name
        assert root.get("alttext")
    parts = [e.tag for e in ET.fromstring(mathml(r"\frac{a}{\sqrt{b}}")).iter()]
    assert {"mfrac", "msqrt", "mi"} <= set(parts)
    told = [(e.tag, e.text) for e in ET.fromstring(mathml(r"\log x \sim \log(x)")).iter()]
    assert told[2:] == [
        ("mi", "log"),
        ("mspace", None),
        ("mi", "x"),
        ("mo", "∼"),
        ("mi", "log"),
        ("mo", "("),
        ("mi", "x"),
        ("mo", ")"),
    ]


@pytest.mark.parametrize(
    "sizes",
    [{}, {"x": 1}, {"x": 2}, {"x": 300}, {"a": 3, "x": 4}, {"a": 2, "b": 3, "x": 4}, {"a": 2, "b": 2, "c": 2, "d": 2, "x": 3},
     {"a": 30, "x": 5}],
)  # fmt: skip
def test_grids_of_any_shape(sizes):
    for outputs in (("value",), tuple(f"out_{i}" for i in range(9))):
        sizes = sizes or {}
        drawn = result(sizes or {"x": 1}, outputs)
        drawn = drawn if sizes else drawn.isel(x=0)
        found = check(page(judge([drawn])))
        charts = [e["id"] for e in found.all("svg") if e["id"].startswith("mine--law")]
        rest = sorted(sizes.values())[:-2]
        assert len(charts) == min(6, len(outputs) * math.prod(rest))
        rows = data_of(next(e for e in found.all("a") if e.get("download") == "mine.csv"))
        assert len(rows) == len(outputs) * math.prod(sizes.values())


def test_what_is_not_finite():
    drawn = result({"x": 6})
    for name, values in (("mean", [np.nan, np.inf]), ("se", [0.0]), ("z", [np.nan, np.inf, -np.inf])):
        drawn[name].values[0, : len(values)] = values
    drawn["se"].values[0, 2] = 0
    found = check(page(judge([drawn])))
    assert "refuted" in found.all("article")[0]["text"]
    assert "2 means are not finite" in found.all("article")[0]["text"]
    rows = data_of(next(e for e in found.all("a") if e.get("download") == "mine.csv"))
    assert math.isnan(float(rows[0]["mean"]))
    assert float(rows[1]["mean"]) == math.inf
    nothing = result({"x": 3})
    for name in ("mean", "se", "z"):
        nothing[name].values[:] = np.nan
    check(page(judge([nothing])))


def test_a_run_that_is_not_finished():
    drawn = result({"x": 6}, unfinished=1)
    for name in ("mean", "se", "z"):
        drawn[name].values[0, 2:] = np.nan
    drawn["trials"].values[2:] = 0
    judged = judge([drawn])
    assert judged.findings[0].tests == 2
    assert judged.holds
    found = check(page(judged))
    assert "the run of mine is not finished, and more trials may decide otherwise." in found.all("header")[0]["text"]
    assert "holds so far" in found.all("table")[0]["text"]
    text = found.all("article")[0]["text"]
    assert "holds so far" in text
    assert "2 of 6 cells have been drawn" in text
    drawn["trials"].values[:] = 0
    found = check(page(judge([drawn])))
    assert "not tested" in found.all("article")[0]["text"]


def test_values_of_any_size():
    for scale in (1e-300, 1e-9, 1.0, 1e12, 1e300):
        drawn = result({"x": 4})
        for name in ("mean", "law", "se"):
            drawn[name].values *= scale
        check(page(judge([drawn])))
    near = result({"x": 4})
    near["law"].values[:] = 1e6 + np.arange(4) * 1e-7
    near["mean"].values[:] = near["law"].values
    check(page(judge([near])))


def test_ten_thousand_cells():
    drawn = result({"a": 100, "x": 100})
    html = page(judge([drawn]))
    assert len(html.encode()) < 5e6
    found = check(html)
    assert len(data_of(next(e for e in found.all("a") if e.get("download") == "mine.csv"))) == 10_000
    drawing = re.search(r'<svg [^>]*id="mine--law-0".*?</svg>', html, re.S)[0]
    assert drawing.count("<path") < 2_000
    many = page(judge([result({"a": 100, "x": 100}, seed=i) for i in range(4)]))
    assert len(many.encode()) < 5e6
    assert "too large for the page" in check(many).all("main")[0]["text"]


def test_the_slope_of_a_known_power():
    sizes = np.array([10.0, 100.0, 1000.0, 1e6])
    law = np.array([[1.0, 2.0]]).T
    gap = np.array([[3.0, 5.0]]).T / sizes
    se = np.full(gap.shape, 1e-4)
    variables = {n: (("output", "N"), v) for n, v in dict(mean=law + gap, se=se, law=law + 0 * gap, z=gap / se).items()}
    drawn = xr.Dataset(
        {**variables, "trials": ("N", np.full(4, 100))}, {"output": ["a", "b"], "N": sizes},
        {"claim": "power", "equation": "x", "source": "", "method": "m"},
    )  # fmt: skip
    slope = slope_of(Table.of(drawn))
    assert slope.slope == pytest.approx(-1)
    assert slope.resolved == 6  # at 10⁶ the gap is below its error
    assert "to the power −1.00" in check(page(judge([drawn]))).all("article")[0]["text"]
    assert slope_of(Table.of(result())) is None


def test_csv_reads_back():
    drawn = result({"a": 2, "x": 3}, ("u", "v"), seed=5)
    rows = list(csv.DictReader(io.StringIO(csv_of(drawn))))
    assert set(rows[0]) == {"output", "fixed", "a", "x", "mean", "se", "law", "z", "trials"}
    for row in rows:
        cell = drawn.sel(output=row["output"], a=float(row["a"]), x=float(row["x"]))
        assert float(row["mean"]) == cell["mean"].item()
        assert float(row["fixed"]) == 0.5


def test_results_that_are_none():
    with pytest.raises(InputError, match="results is empty"):
        judge([])
    with pytest.raises(InputError, match=r"results\[1\] has no se and no law"):
        judge([result(), result().drop_vars(["se", "law"])])
    with pytest.raises(InputError, match="level = 2"):
        judge([result()], level=2)


def test_a_page_is_written_whole(tmp_path):
    path = write_page(judge([result()]), tmp_path / "report.html")
    assert path.read_text("utf-8").endswith("</html>\n") or path.read_text("utf-8").endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_full_verdict_is_quick_and_small():
    """Fifty claims of up to 171 cells: at most 10 s and 5 MB."""
    results = [result({"a": 3, "N": 3, "x": 19}, seed=i, claim=f"claim {i}") for i in range(50)]
    verdict = judge(results)
    assert isinstance(verdict, Verdict)
    began = time.perf_counter()
    html = page(verdict)
    assert time.perf_counter() - began < 10
    assert len(html.encode()) < 5e6


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour, other):
    high, low = sorted((luminance(colour), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read():
    """WCAG 2 AA: 4.5 for text and 3 for what a figure is made of, on a light and on a dark page."""
    style = re.search(r"<style>(.*?)</style>", page(judge([result()])), re.S)[1]
    blocks = re.findall(r"\{color-scheme:(light|dark);([^}]*)\}", style)
    assert [kind for kind, _ in blocks] == ["light", "dark", "dark", "light"]
    for _, block in blocks:
        colour = dict(re.findall(r"--([\w-]+):(#\w+)", block))
        colour = {k: "#" + "".join(c * 2 for c in v[1:]) if len(v) == 4 else v for k, v in colour.items()}
        for name in ("ink", "muted", "link", "good", "bad"):
            for back in ("bg", "surface"):
                assert contrast(colour[name], colour[back]) >= 4.5, (name, back)
        assert contrast(colour["good"], colour["good-bg"]) >= 4.5
        assert contrast(colour["bad"], colour["bad-bg"]) >= 4.5
        for name in (k for k in COLOURS if re.fullmatch(r"s\d", k)):
            assert contrast(colour[name], colour["bg"]) >= 3, name
            assert contrast(colour[name], colour["band"]) >= 3, name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (40, "40"), (1e9, "10⁹"), (1000, "1000"), (1e4, "10⁴"), (-3, "−3"), (2.5e-7, "2.5·10⁻⁷"),
     (12345, "12345"), (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "not a number"), (0.1, "0.1")],
)  # fmt: skip
def test_numbers_as_labels(value, text):
    assert number(value) == text


def test_marks_of_scales():
    assert [m for m, _ in Scale(0, 1, 0, 100).marks] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [t for _, t in Scale(0.9, 1.1e4, 0, 100, log=True).marks] == ["1", "10¹", "10²", "10³", "10⁴"]
    wide = Scale(-4e5, 4e5, 0, 100)
    assert wide.note == "× 10⁵"
    assert [t for _, t in wide.marks] == ["−4", "−2", "0", "2", "4"]
    near = Scale(0.70037, 0.700371, 0, 100)
    assert near.note
    assert len({t for _, t in near.marks}) == len(near.marks)
