"""Every kernel is lowered for accelerators, with none at hand: every claim's samplers, linear algebra, laws, a training step.

`jax.export` lowers a program for a platform that this machine does not have. All programs below are lowered for both platforms,
in float64 too, but for what calls a primitive that TPUs lack (`LACKING`). That does not say how fast or how precise float64 is
on a TPU: nobody has measured it. Every compressed sampler needs it. `svd` by Lanczos is no program but a loop on the host, and
refuses to be traced (`tests/linalg/test_svd.py`); the step of that loop on a device is lowered here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmtjax.adapters import alpha_updater
from rmtjax.claims import CLAIMS
from rmtjax.ensembles import density, intruder, outlier
from rmtjax.ensembles.chi import chi
from rmtjax.ensembles.entries import entries
from rmtjax.ensembles.haar import orthogonal
from rmtjax.ensembles.wigner import goe, hermite
from rmtjax.ensembles.wishart import iid, laguerre
from rmtjax.laws import marchenko_pastur, semicircle
from rmtjax.laws.edge import tracy_widom
from rmtjax.laws.intruders import wigner_intruder_probability
from rmtjax.linalg import low_rank, ridge, sturm
from rmtjax.linalg.krylov import LowRankUpdated
from rmtjax.linalg.krylov.block_lanczos import _device_step
from rmtjax.linalg.svd import eigh, eigvalsh, svd, svdvals
from rmtjax.montecarlo.claim import call_with

from .finetune.helpers import adapted, sequences
from .finetune.test_step import PIECES, trainer_of

PLATFORMS = ("cuda", "tpu")
KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
NUMBER = jax.ShapeDtypeStruct((), np.float64)


def array(*shape, dtype=np.float64):
    return jax.ShapeDtypeStruct(shape, dtype)


SAMPLERS = {
    "wigner_outlier": (outlier.wigner_outlier, KEY, NUMBER, NUMBER),
    "rectangular_outlier": (outlier.rectangular_outlier, KEY, NUMBER, NUMBER, NUMBER),
    "covariance_outlier": (outlier.covariance_outlier, KEY, NUMBER, NUMBER, NUMBER),
    "wigner_outliers": (outlier.wigner_outliers, KEY, NUMBER, array(2)),
    "rectangular_outliers": (outlier.rectangular_outliers, KEY, NUMBER, NUMBER, array(2)),
    "covariance_outliers": (outlier.covariance_outliers, KEY, NUMBER, NUMBER, array(2)),
    "wigner_edge": (lambda key: outlier.wigner_edge(key, 1000), KEY),
    "hermite_cdf": (density.hermite_cdf, KEY, NUMBER, array(3)),
    "laguerre_cdf": (density.laguerre_cdf, KEY, NUMBER, NUMBER, array(3)),
    "spectral_measure": (density.spectral_measure, KEY, NUMBER, NUMBER, NUMBER, NUMBER),
    "wigner_intruder": (lambda key, theta: intruder.wigner_intruder(key, 40, theta, 0.5), KEY, NUMBER),
    "rectangular_intruder": (lambda key, theta: intruder.rectangular_intruder(key, 40, 30, theta, 0.5), KEY, NUMBER),
    "chi": (chi, KEY, array(5)),
    "entries": (lambda key: entries(key, (5, 4), "student-t:3"), KEY),
    "goe": (lambda key: goe(key, 6), KEY),
    "hermite": (lambda key: hermite(key, 6), KEY),
    "iid": (lambda key: iid(key, 6, 5), KEY),
    "laguerre": (lambda key: laguerre(key, 5, 6.0), KEY),
    "orthogonal": (lambda key: orthogonal(key, 6, 3), KEY),
}
DECOMPOSITIONS = {
    **{
        f"svd, {name}": (functools.partial(svd, algorithm=name), array(4, 9, 6))
        for name in ("auto", "library", "threads", "jacobi", "gram", "polar")
    },
    "svd, gram64": (functools.partial(svd, algorithm="gram64"), array(4, 9, 6, dtype=np.float32)),
    "svd, randomized": (functools.partial(svd, k=2, algorithm="randomized"), array(4, 30, 20)),
    "svdvals": (svdvals, array(4, 9, 6)),
    "eigh": (eigh, array(4, 6, 6)),
    "eigvalsh": (eigvalsh, array(4, 6, 6)),
    "gradient of svd": (jax.grad(lambda a: jnp.sum(svd(a).U[:, 0] ** 3)), array(9, 6)),
    "count_below": (sturm.count_below, array(8), array(7), array(3)),
    "eigenvalues": (sturm.eigenvalues, array(8), array(7)),
    "update_eigh": (low_rank.update_eigh, array(8), array(8), NUMBER),
    "ridge_solve": (ridge.ridge_solve, array(8, 5), NUMBER, array(8, 2)),
}
LAWS = {
    "semicircle": (semicircle.ppf, NUMBER),
    "marchenko_pastur": (marchenko_pastur.ppf, NUMBER, NUMBER),
    "tracy_widom": (lambda q: tracy_widom.ppf(q, 1), NUMBER),
    "intruder law": (wigner_intruder_probability, NUMBER, NUMBER, NUMBER),
}


@pytest.mark.each_value
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", [*SAMPLERS, *DECOMPOSITIONS, *LAWS])
def test_it_is_lowered(name, platform):
    function, *arguments = {**SAMPLERS, **DECOMPOSITIONS, **LAWS}[name]
    with jax.enable_x64(True):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,) and len(exported.mlir_module_serialized) > 0


LACKING = {("erratum-eigenvalue-outlier", "dense"): "eig", ("corrected-eigenvalue-outlier", "dense"): "eig"}
"""Samplers that TPUs cannot run, and the primitive that they lack: eigenvalues of a matrix that is not symmetric."""

CHECKS = [jax.export.DisabledSafetyCheck.custom_call("cuhybrid_eig_real")]
"""JAX does not promise that it will know this call in later versions; here it is only lowered."""


@pytest.mark.first(2)
@pytest.mark.parametrize(("name", "sampler"), [(name, s) for name, claim in CLAIMS.items() for s in claim.samplers])
def test_samplers_of_claims_are_lowered(name, sampler):
    claim = CLAIMS[name]
    cells = claim.resolve(claim.grid if claim.comparison_grid is None else claim.comparison_grid)
    chosen, traced, fixed = claim.samplers[sampler], {}, claim.samplers[sampler].choose(None)
    for axis in cells.axes:
        for parameter, values in axis.values.items():
            if parameter in chosen.static_argnames:
                fixed[parameter] = int(values[0]) if claim.params[parameter].whole else float(values[0])
            else:
                traced[parameter] = array(len(values)) if parameter in claim.within else NUMBER

    def draw(key, values):
        return call_with(chosen.draw, key, **values, **fixed)

    for platform in PLATFORMS:
        with jax.enable_x64(True):
            if platform == "tpu" and (name, sampler) in LACKING:
                with pytest.raises(NotImplementedError, match=LACKING[name, sampler]):
                    jax.export.export(jax.jit(draw), platforms=[platform])(KEY, traced)
            else:
                export = jax.export.export(jax.jit(draw), platforms=[platform], disabled_checks=CHECKS)
                assert export(KEY, traced).mlir_module_serialized


@pytest.mark.thorough
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_of_training_is_lowered(platform):
    """AdamW on the adapters, Adam on α, dropout, pieces of two lengths."""
    model = adapted("dora", alpha=True)
    moves = alpha_updater(optax.adam(1e-2), every=2)
    trainer = trainer_of(model, optimizer=optax.adamw(1e-2), alpha=moves, dropout=True)
    batch = trainer.put(PIECES.arrange(sequences((2, 4, 5, 9, 13, 16)), np.arange(6)))
    export = jax.export.export(trainer.step, platforms=[platform])
    assert export(trainer.start, trainer.frozen, batch, batch).mlir_module_serialized
    logits = jax.export.export(trainer.logits, platforms=[platform])
    assert logits(trainer.start, trainer.frozen, batch).mlir_module_serialized


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_of_the_scan_is_lowered(platform):
    """One step of block Lanczos with the basis on the device, for a layer with a low-rank update."""
    given = [np.ones(shape, np.float32) for shape in ((40, 30), (40, 2), (2, 30), (40, 24), (40, 4))]

    def step(weight, left, right, basis, block):
        return _device_step(LowRankUpdated(weight, None, left, right), basis, jnp.int32(0), block)

    assert jax.export.export(jax.jit(step), platforms=[platform])(*given).mlir_module_serialized
