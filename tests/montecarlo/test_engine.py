import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.montecarlo import Claim, Limits, Sampler, grid, open_result, positive, real, run, size, to_records
from rmtjax.montecarlo.resources import needs

from .helpers import BOTH, MEAN, TWO, mean_draw


def _by_hand(claim, seed, cell, trials):
    """Draw by the engine's promise: trial t of a cell is draw(fold_in(cell key, t))."""
    from rmtjax.montecarlo.keys import cell_keys

    with jax.enable_x64(True):
        key = jax.random.wrap_key_data(
            cell_keys(seed, f"{claim.name}:direct", {k: np.array([v]) for k, v in cell.items()})[0]
        )
        values = {k: jnp.asarray(v) for k, v in cell.items()}
        draw = jax.jit(jax.vmap(lambda t: claim.samplers["direct"].draw(jax.random.fold_in(key, t), **values)))
        return np.asarray(draw(jnp.arange(trials, dtype=jnp.uint32)))


def test_every_trial_is_a_function_of_seed_claim_cell_and_trial():
    result = run(MEAN, trials=3000, seed=5, keep_samples=True)
    mine = _by_hand(MEAN, 5, {"n": 4.0, "shift": 1.0}, 3000)
    theirs = result["samples"].sel(output="value", n=4, shift=1).values
    np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-15)
    np.testing.assert_allclose(result["mean"].sel(output="value", n=4, shift=1), mine.mean(), rtol=1e-14)
    np.testing.assert_allclose(result["variance"].sel(output="value", n=4, shift=1), mine.var(ddof=1), rtol=1e-12)


def test_the_standard_error_is_one():
    """Z over 2000 independent cells is t with 49 degrees of freedom: 4.5 standard deviations of mean and variance."""
    result = run(MEAN, grid(n=np.arange(1, 2001), shift=0.0), trials=50)
    z = result["z"].values.ravel()
    assert abs(z.mean()) < 4.5 / np.sqrt(2000)
    spread = 4.5 * np.sqrt(2.1 / 2000)
    assert abs(z.var() / (49 / 47) - 1) < spread
    assert abs(1.1**2 - 1) > spread  # a standard error 10 % off would show


def test_outputs_and_values_within_a_draw():
    result = run(TWO, trials=5000, covariance=True, histogram=[-0.5, 0.0, 0.5])
    assert result["mean"].dims == ("output", "n", "x")
    assert float(np.abs(result["z"]).max()) < 4.5
    # At x = 0 the draw does not matter: no variance, and the law holds exactly.
    assert (result["se"].sel(x=0) == 0).all()
    assert (result["z"].sel(x=0) == 0).all()
    both = result["covariance"].sel(n=1, x=2)
    np.testing.assert_allclose(np.diag(both), result["variance"].sel(n=1, x=2), rtol=1e-12)
    counts = result["histogram"].sel(output="sine", n=1, x=2)
    assert counts.sum() == 5000
    # sin is odd and the draw symmetric: 4.5 standard errors of a fair coin
    assert abs(int(counts[:2].sum()) - 2500) < 4.5 * np.sqrt(5000) / 2
    # one draw serves all x: cos(2z) = 1 − 2 sin(z)²
    kept = run(TWO, trials=100, keep_samples=True)["samples"].sel(n=2)
    np.testing.assert_allclose(
        kept.sel(output="cosine", x=2), 1 - 2 * kept.sel(output="sine", x=1) ** 2, rtol=0, atol=1e-12
    )


def test_a_cell_is_the_same_in_every_grid():
    small = run(MEAN, grid(n=16, shift=1.0), trials=700)
    large = run(MEAN, trials=700)
    assert float(small["mean"].squeeze()) == pytest.approx(
        float(large["mean"].sel(output="value", n=16, shift=1)), rel=1e-15
    )


@pytest.mark.parametrize("trials", [2, 3, 100, 1023, 1024, 1025, 5000])
def test_any_number_of_trials(trials):
    result = run(MEAN, grid(n=1, shift=[0.0, 1.0, 2.0]), trials=trials, keep_samples=True)
    assert (result["trials"] == trials).all()
    samples = result["samples"].squeeze()
    assert samples.shape == (3, trials)
    assert np.isfinite(samples).all()
    np.testing.assert_allclose(result["mean"].squeeze(), samples.mean("trial"), rtol=1e-12, atol=1e-14)


def test_results_do_not_depend_on_the_cut(tmp_path):
    """Chunks of any size, stored or not, give the same bits."""
    reference = run(TWO, trials=9000)
    for chunks in (1, 3, 10_000):
        again = run(TWO, trials=9000, store=tmp_path / str(chunks), limits=Limits(chunks=chunks))
        assert reference.equals(again)
        assert reference.equals(open_result(tmp_path / str(chunks)))


def test_static_parameters_are_python_numbers_and_agree():
    dense = run(BOTH, trials=2000, sampler="dense")
    assert float(np.abs(dense["z"]).max()) < 4.5
    assert dense.attrs["method"] == "dense"


DEVICES = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from rmtjax.montecarlo import run
from tests.montecarlo.helpers import TWO
result = run(TWO, trials=20000, seed=3)
assert len(jax.devices()) == int(sys.argv[1])
np.save(sys.argv[2], np.stack([result["mean"], result["variance"], result["min"], result["max"]]))
"""


@pytest.mark.thorough
def test_any_number_of_devices_gives_the_same_bits(tmp_path):
    root = Path(__file__).parents[2]
    found = []
    for count in (1, 2, 8):
        file = tmp_path / f"{count}.npy"
        subprocess.run([sys.executable, "-c", DEVICES, str(count), str(file)], check=True, cwd=root, timeout=300)
        found.append(np.load(file))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_provenance():
    made = run(MEAN, grid(n=1, shift=0.0), trials=10, seed=7).attrs
    assert made["seed"] == 7
    assert made["claim"] == "mean"
    assert "jax" in made["versions"]
    assert made["device"]
    assert made["wall_s"] > 0
    assert made["compile_s"] > 0
    assert made["finished"].startswith("20")
    assert "git_commit" in made


def test_cells_as_plain_values():
    rows = to_records(run(MEAN, trials=10))
    assert len(rows) == 6
    assert set(rows[0]) == {"n", "shift", "trials", "mean", "se", "law", "z"}
    assert isinstance(rows[0]["n"], int)
    rows = to_records(run(TWO, trials=10))
    assert set(rows[0]["outputs"]) == {"cosine", "sine"}
    assert to_records(run(MEAN, grid(n=1, shift=0.5), trials=10))[0]["shift"] == 0.5


def test_double_precision_without_the_global_switch():
    assert not jax.config.jax_enable_x64
    tiny = Claim(
        name="tiny",
        equation="1 + 10^{-12}",
        source="",
        params=dict(x=real()),
        law=lambda x: x + 1e-12,
        samplers=dict(direct=lambda key, x: x + 1e-12),
        grid=dict(x=1.0),
    )
    result = run(tiny, trials=2)
    assert float(result["mean"].squeeze()) == 1 + 1e-12
    assert not jax.config.jax_enable_x64


def _claim(**changes):
    given = dict(
        name="c",
        equation="",
        source="",
        params=dict(n=size()),
        law=lambda n: n,
        samplers=dict(direct=lambda key, n: n),
        grid=dict(n=1),
    )
    return Claim(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(samplers={}), "no sampler"),
        (dict(law=lambda m: m), "law's parameter 'm' is unknown"),
        (dict(samplers=dict(direct=lambda key, nn: nn)), "parameter 'nn' is unknown; did you mean 'n'"),
        (dict(grid=dict(n=0)), "n = 0: must be a whole number"),
        (dict(grid=dict(n=1, m=2)), "parameter 'm' is unknown"),
        (dict(grid={}), "parameter n has no value"),
        (dict(within=("x",)), "'x' is unknown"),
        (dict(samplers=dict(direct=Sampler(lambda key, n: n, static_argnames=("k",)))), "'k' is unknown"),
    ],
)
def test_claims_that_cannot_be(changes, says):
    with pytest.raises(InputError, match=says):
        _claim(**changes)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(trials=0), "trials = 0"),
        (dict(trials=1), "trials = 1"),
        (dict(trials=2.5), "trials = 2.5"),
        (dict(trials=float("nan")), "trials = nan"),
        (dict(trials=2**40), "trials = 1099511627776"),
        (dict(trials="many"), "trials = 'many'"),
        (dict(seed=-1), "seed = -1"),
        (dict(seed=2**32), "seed = 4294967296"),
        (dict(seed=0.5), "seed = 0.5"),
        (dict(sampler="dens"), "sampler 'dens' is unknown; did you mean 'dense'"),
        (dict(options={"entries": "gaussian"}), "no such option"),
        (dict(histogram=[1.0]), "histogram = "),
        (dict(histogram=[2.0, 1.0]), "histogram = "),
        (dict(histogram=[0.0, np.nan]), "histogram = "),
        (dict(memory=0), "memory = 0"),
        (dict(devices=[]), "devices = \\[\\]: must be a list of at least one JAX device"),
        (dict(grid=grid(n=-1, shift=0.0)), "n = -1"),
        (dict(grid=grid(n=np.nan, shift=0.0)), "n = nan"),
        (dict(grid=grid(n=1, shift=np.inf)), "shift = inf"),
        (dict(grid=grid(n=1)), "shift has no value"),
        (dict(grid=grid(n=1, shift=0.0, shft=1.0)), "'shft' is unknown; did you mean 'shift'"),
        (dict(keep_samples=True, trials=10**6, memory=1e6), "memory: the results"),
    ],
)
def test_runs_that_cannot_be(how, says):
    with pytest.raises(InputError, match=says):
        run(BOTH, **{"trials": 10, **how})


def test_more_memory_than_there_is():
    big = _claim(
        samplers=dict(direct=Sampler(lambda key, n: jnp.sum(jnp.linalg.inv(jnp.eye(n))), static_argnames=("n",)))
    )
    with pytest.raises(InputError, match=r"memory: 'c' at n = 1e\+06 needs 8e\+03 GB for one trial"):
        run(big, grid(n=1e6), trials=2)


@pytest.mark.thorough
def test_little_memory_is_met_by_drawing_fewer_at_once():
    wide = _claim(
        samplers=dict(
            direct=Sampler(lambda key, n: jnp.max(jnp.cumsum(jax.random.normal(key, (n,)))), static_argnames=("n",))
        ),
        law=lambda n: 0 * n,
    )
    cells = grid(n=100_000)
    roomy = run(wide, cells, trials=64, memory=4e9)
    tight = run(wide, cells, trials=64, memory=3e7)
    np.testing.assert_allclose(roomy["mean"], tight["mean"], rtol=1e-12)


def test_an_output_of_the_wrong_shape_or_name():
    with pytest.raises(InputError, match=r"output value has shape \(2,\): must be \(\)"):
        run(_claim(samplers=dict(direct=lambda key, n: jnp.ones(2))), trials=2)
    with pytest.raises(InputError, match="returns \\['a'\\], but the law predicts \\['value'\\]"):
        run(_claim(samplers=dict(direct=lambda key, n: {"a": n})), trials=2)


def test_linear_algebra_in_a_users_sampler_does_not_lock_up():
    """XLA's processor client lets two programs with batched LAPACK calls wait for each other for ever."""
    edge = Claim(
        name="edge",
        equation="",
        source="",
        params=dict(n=positive()),
        law=lambda n: 2 + 0 * n,
        samplers=dict(
            direct=lambda key, n: jnp.linalg.eigvalsh(jax.random.normal(key, (8, 8)))[-1],
        ),
        grid=dict(n=[1.0, 2.0, 3.0]),
    )
    assert np.isfinite(run(edge, trials=3000)["mean"]).all()


TWO_SYSTEMS = """
import jax, jax.numpy as jnp, numpy as np
from rmtjax.montecarlo import Claim, Sampler, positive, run

def draw(key, n):
    one, two = jax.random.split(key)
    def corner(key, size):
        x = jax.random.normal(key, (size, 2 * size))
        return jnp.linalg.inv(x @ x.T + n * jnp.eye(size))[0, 0]
    return corner(one, 80) + corner(two, 60)

claim = Claim(name="two", equation="", source="", params=dict(n=positive()), law=lambda n: n,
              samplers=dict(direct=Sampler(draw, block=16)), grid=dict(n=[1.0, 2.0, 3.0]))
for trials in (4, 300):  # with several cells a tile, and one
    assert np.isfinite(run(claim, trials=trials)["mean"]).all()
print("done")
"""


@pytest.mark.thorough
def test_two_systems_of_one_trial_do_not_lock_up():
    """Nor do two batches within one program, where they need nothing of each other (see `resources`)."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_SYSTEMS], capture_output=True, text=True, timeout=300,
        env={**os.environ, "NPROC": "2"},
    )  # fmt: skip
    assert done.stdout.strip() == "done", done.stderr


def test_trials_of_one_batch_on_processors():
    """As many as LAPACK does on the thread that asks: all small ones, one large one."""

    def products(size):
        solve = lambda a: jnp.linalg.cholesky(a @ a.T)[0, 0]  # noqa: E731
        return needs(solve, jnp.ones((size, size)))

    assert needs(lambda a: a @ a, jnp.ones((300, 300))).at_once == np.inf
    assert products(4).at_once >= 1024
    assert products(100).at_once == 1
    assert not products(100).pooled and needs(jnp.linalg.cholesky, jnp.ones((4, 100, 100))).pooled
    assert not needs(jnp.linalg.cholesky, jnp.ones((4, 10, 10))).pooled


def test_same_name_means_same_draws_only_for_the_same_claim():
    other = Claim(**{**{f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}, "name": "other"})
    cells = grid(n=1, shift=0.0)
    assert float(run(MEAN, cells, trials=10)["mean"].squeeze()) != float(run(other, cells, trials=10)["mean"].squeeze())
    assert MEAN.samplers["direct"].draw is mean_draw


def test_a_compiler_without_the_option_is_asked_again(monkeypatch):
    """An option that only affects speed may be unknown to another version of XLA; any other refusal is an error."""
    from rmtjax.montecarlo import program

    monkeypatch.setattr(program.COMPILER, "options", {"cpu": {"xla_cpu_no_such_option": True}})
    lowered = jax.jit(lambda x: 2 * x).lower(1.0)
    assert program.COMPILER.compile(lowered, "cpu")(1.0) == 2
    assert program.COMPILER.options == {}
    monkeypatch.setattr(program.COMPILER, "options", {"cpu": {"xla_cpu_enable_fast_min_max": False}})
    assert program.COMPILER.compile(lowered, "cpu")(3.0) == 6
    assert "cpu" in program.COMPILER.options


def test_what_a_platform_lacks_is_said(monkeypatch):
    """As a TPU does of eigenvalues of matrices that are not symmetric."""

    def lacking(*arguments, **options):
        raise NotImplementedError("MLIR translation rule for primitive 'eig' not found for platforms ['tpu']")

    monkeypatch.setattr("rmtjax.montecarlo.programs.LoweredProgram", lacking)
    law, draw = lambda x: x, lambda key, x: x + jax.random.normal(key)
    claim = Claim("own", "x", "nowhere", dict(x=real()), law, dict(direct=draw), grid(x=[0.0]))
    with pytest.raises(InputError, match=r"platform = cpu: 'own' cannot be compiled for it \(MLIR .* primitive 'eig'"):
        run(claim, trials=8)
