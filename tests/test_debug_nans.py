"""Under `jax_debug_nans` nothing stops that has a number for an answer: no NaN is made on purpose on the way to it."""

import jax
import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.laws import intruders
from rmtjax.linalg import low_rank, sturm
from rmtjax.linalg.svd import eigh, svd
from rmtjax.montecarlo import Claim, real, run
from rmtjax.spectra.ranks import effective_rank


@pytest.fixture(autouse=True)
def debug_nans():
    jax.config.update("jax_debug_nans", True)  # for every thread, which its context manager is not
    yield
    jax.config.update("jax_debug_nans", False)


def test_thresholds():
    assert 1 < intruders.wigner_intruder_threshold(200.0, 0.3) < 10


def test_samples_of_blocks_that_are_not_full():
    claim = Claim(
        name="debug nans",
        equation="E x = μ",
        source="any textbook",
        params={"shift": real("mean")},
        law=lambda shift: shift,
        samplers={"direct": lambda key, shift: shift + jax.random.normal(key)},
        grid={"shift": [0.0]},
    )
    kept = run(claim, trials=100, keep_samples=True)["samples"]
    assert kept.shape[-1] == 100 and np.isfinite(kept).all()


def test_derivatives():
    a = np.random.default_rng(0).normal(size=(5, 3))
    with jax.enable_x64(True):
        for function in (lambda a: svd(a).U[:, 0].sum(), lambda a: eigh(a @ a.T + a[0, 0]).eigenvectors[0, -1]):
            assert np.isfinite(jax.grad(function)(jax.numpy.asarray(a))).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: svd(np.eye(3) * bad),
        lambda bad: sturm.eigenvalues(np.ones(3) * bad, np.ones(2)),
        lambda bad: low_rank.resolvent(np.eye(3) * bad, 1.0),
        lambda bad: low_rank.update_eigh(np.arange(3.0) * bad, np.ones(3), 1.0),
        lambda bad: effective_rank(np.ones(3) * bad),
    ],
)
def test_bad_input_is_refused_in_its_own_words(call):
    with pytest.raises(InputError, match="nan"):
        call(np.nan)
