"""Every public function with what nobody would give it: an error of one line that names the argument, before anything is done."""

import importlib
import inspect
import warnings

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._svd_cases import read_shapes
from rmtjax import AlphaTransferClassifier, InputError
from rmtjax.adapters import alpha_updater
from rmtjax.claims import CLAIMS
from rmtjax.datasets.glue import score
from rmtjax.finetune import Settings
from rmtjax.linalg.svd import SVD_ALGORITHMS, eigh, eigvalsh, svd, svdvals
from rmtjax.montecarlo import Run, grid, judge, merge_results, run, zipped
from rmtjax.montecarlo.grid import parse_values
from rmtjax.transfer.domains import run_transfer
from tests.adapters.helpers import with_adapters

from ..montecarlo.helpers import BOTH, MEAN, TWO
from .helpers import JUNK, NUMBERS, many, survives

pytestmark = pytest.mark.fuzz
TEXT = st.text(alphabet="0123456789.,:+-eEinfax =", max_size=12)


@many(2000)
@given(text=st.one_of(TEXT, st.text(max_size=10)))
def test_values(text):
    found = survives(parse_values, "x", text)
    assert found is None or np.size(found) >= 1


@many(500)
@given(
    text=st.one_of(st.text(alphabet="0123456789x,", max_size=12), st.text(max_size=8)),
    batch=st.none() | st.integers(-1, 9),
)
def test_shapes(text, batch):
    found = survives(read_shapes, text, batch)
    assert found is None or all(len(shape) == 3 and min(shape) >= 1 for shape in found)


@many(1000)
@given(n=JUNK, shift=JUNK, together=st.booleans())
def test_grids(n, shift, together):
    def made():
        cells = grid(zipped(n=n, shift=shift)) if together else grid(n=n, shift=shift)
        return MEAN.resolve(cells)

    survives(made)


ASKED = {
    "trials": JUNK.filter(lambda v: not (isinstance(v, (int, float)) and v == v and v > 10**7)),
    "until_se": JUNK, "seed": JUNK, "sampler": JUNK, "options": JUNK, "histogram": JUNK, "memory": JUNK, "grid": JUNK,
    "devices": JUNK, "store": st.one_of(st.integers(), st.lists(st.integers(), max_size=2), st.just("")),
}  # fmt: skip


@many(1500)
@given(data=st.data())
def test_runs(data):
    names = data.draw(st.lists(st.sampled_from(sorted(ASKED)), min_size=1, max_size=2, unique=True))
    asked = {name: data.draw(ASKED[name], label=name) for name in names}
    survives(Run, data.draw(st.sampled_from([MEAN, TWO, BOTH])), **asked)


@pytest.fixture(scope="module")
def result():
    return run(MEAN, trials=20)


@many(300)
@given(data=st.data())
def test_verdicts(result, data):
    level = data.draw(JUNK)
    survives(judge, [result], level=level)
    survives(merge_results, data.draw(st.sampled_from([[], [result], [result, result]])))


@many(2000)
@given(data=st.data())
def test_settings(data):
    chosen = {"task": "mrpc"}
    for name in data.draw(st.lists(st.sampled_from(sorted(Settings.__dataclass_fields__)), min_size=1, max_size=2)):
        chosen[name] = data.draw(JUNK, label=name)
    survives(Settings(**chosen).checked)


X, Y = np.random.default_rng(0).standard_normal((12, 4)), np.tile([-1, 1], 6)


@many(400)
@given(data=st.data())
def test_estimators(data):
    chosen = {"source_coef": np.ones(4), "alpha": 1.0}
    for name in data.draw(
        st.lists(st.sampled_from(["source_coef", "alpha", "gamma", "X", "y"]), min_size=1, max_size=2)
    ):
        chosen[name] = data.draw(JUNK, label=name)
    x, y = chosen.pop("X", X), chosen.pop("y", Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            survives(AlphaTransferClassifier(**chosen).fit, x, y)
        except (ValueError, TypeError) as error:  # scikit-learn's own checks of X and y, as its conventions ask for
            raised = inspect.trace()[-1].filename + "".join(str(frame.filename) for frame in inspect.trace())
            assert "sklearn" in raised, error


LAWS = [
    (module, name)
    for module in ("semicircle", "marchenko_pastur", "edge.tracy_widom", "spikes", "spectral_measure", "perturbation")
    for name in importlib.import_module(f"rmtjax.laws.{module}").__all__
]


@many(1500)
@given(data=st.data())
def test_laws(data):
    """A law answers, perhaps with NaN, or says which argument is not allowed."""
    module, name = data.draw(st.sampled_from(LAWS))
    law = getattr(importlib.import_module(f"rmtjax.laws.{module}"), name)
    needed = [
        p for p in inspect.signature(law).parameters.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY
    ]
    values = [data.draw(st.one_of(NUMBERS.filter(lambda v: abs(v) < 2**62 if isinstance(v, int) else True)), label=p.name)
              for p in needed]  # fmt: skip
    survives(law, *values)


MATRICES = st.sampled_from([
    np.zeros((2, 3, 3), np.float32), np.full((2, 3, 3), np.nan, np.float32), np.full((2, 3, 3), np.inf, np.float32),
    np.ones((2, 3, 3), np.int32), np.ones(3, np.float32), np.zeros((2, 0, 3), np.float32), np.zeros((0, 3, 3), np.float32),
    np.full((2, 3, 3), 1e38, np.float32), np.full((2, 3, 3), 1e-45, np.float32), np.eye(3, dtype=np.complex64)[None],
    np.ones((2, 3, 3), bool), np.eye(3, dtype=np.float16)[None], np.array("text"), np.eye(3, dtype=np.float32),
])  # fmt: skip


@many(600)
@given(data=st.data())
def test_decompositions(data):
    a = data.draw(MATRICES)
    function = data.draw(st.sampled_from([svd, svdvals, eigh, eigvalsh]))
    named = {}
    if data.draw(st.booleans()):
        named["algorithm"] = data.draw(st.one_of(st.sampled_from(SVD_ALGORITHMS), st.text(max_size=5), st.none()))
    if function is svd and data.draw(st.booleans()):
        named["k"] = data.draw(JUNK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(function, a, **named)


class Small(nnx.Module):
    """Two layers to adapt."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.query, self.value = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)


@many(600)
@given(data=st.data())
def test_adapters(data):
    model, chosen = Small(), {"target_modules": ["query"], "rank": 2, "adapter": "lora"}
    name = data.draw(
        st.sampled_from(["target_modules", "rank", "adapter", "lora_alpha", "alpha", "alpha_share", "train"])
    )
    chosen[name] = data.draw(JUNK, label=name)
    before = jax.tree.map(np.asarray, nnx.state(model))
    if survives(with_adapters, model, chosen.pop("adapter"), **chosen) is None:
        after = jax.tree.map(np.asarray, nnx.state(model))
        assert jax.tree.structure(before) == jax.tree.structure(after), "an adapter that was refused has been put in"
    survives(alpha_updater, optax.sgd(0.1), data.draw(JUNK))


@many(800)
@given(data=st.data())
def test_scores(data):
    name = data.draw(st.sampled_from(["mrpc", "cola", "stsb", "mnli", "sst2", "x", ""]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = survives(score, name, data.draw(JUNK), data.draw(JUNK))
    assert found is None or all(isinstance(v, float) for v in found.values())


@many(300)
@given(data=st.data())
def test_transfers(data):
    name = data.draw(st.sampled_from(["source", "target", "n", "gamma", "source_gamma", "features", "words", "seeds"]))
    value = data.draw(JUNK.filter(lambda v: not isinstance(v, (int, float)) or v <= 0 or v != v or v in (np.inf,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(run_transfer, **{name: value})


OPTIONS = [
    "--set", "--trials", "--until-se", "--sampler", "--entries", "--option", "--seed", "--dry-run", "--coordinator",
    "--num-processes", "--process-id", "--json",
]  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["n=1", "n=1:3:3", "shift=0", "n", "=", "n=nan", "n=1e400", "2", "1e9", "-1", "value=0.1", "direct",
                     "gaussian", "x=1", "student-t", "student-t:1", "nan", "", "cpu", "tpu", "here:1", "ü", "/nowhere/x.json"]),
    st.text(alphabet="abn=:,.0123456789-", max_size=6),
)  # fmt: skip
CLAIM = """
import jax, jax.numpy as jnp
from rmtjax import Claim, real, size
mean = Claim(name="mean", equation="E x = mu", source="mine", params=dict(n=size(), shift=real()),
    law=lambda n, shift: shift + 0 * n, samplers=dict(direct=lambda key, n, shift: shift + jax.random.normal(key) / jnp.sqrt(n)),
    grid=dict(n=[1, 100], shift=[1.0, 2.0]))
"""


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A folder for the files that any word may name."""
    monkeypatch.chdir(tmp_path)


@many(700)
@given(data=st.data())
def test_command_line(data, tmp_path_factory, somewhere):
    """`rmtjax sweep` with any options: it ends by itself, with status 0 or 2 and one line."""
    from typer.testing import CliRunner

    from rmtjax.cli import app

    place = tmp_path_factory.getbasetemp() / "claim.py"
    place.write_text(CLAIM)
    line = ["sweep", str(place), "--trials", "5"]
    for option in data.draw(st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=3)):
        line += [option] if option == "--dry-run" else [option, data.draw(WORDS)]
    if "--until-se" in line and "--trials" not in line[4:]:
        line += ["--trials", "50"]
    if "--coordinator" in line:
        line += ["--num-processes", "0"]  # what would change this process for good is refused for another reason
    done = CliRunner().invoke(app, line)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, InputError), (line, repr(done.exception))
        assert "\n" not in str(done.exception)
    else:
        assert done.exit_code in (0, 2), (line, done.output)


@many(300)
@given(data=st.data())
def test_claims_at_any_parameters(data):
    """A claim's law at any value of a parameter that it allows: an answer; at any other: a line."""
    claim = data.draw(st.sampled_from([c for c in CLAIMS.values() if not c.name.startswith(("erratum", "corrected"))]))
    name = data.draw(st.sampled_from(sorted(claim.params)))
    changed = {name: data.draw(st.one_of(NUMBERS, JUNK))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(lambda: claim.predict(claim.resolve(claim.grid.override(**changed))))
