"""Each update against its formula in NumPy: kernels, outputs, gradients, singular values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmtjax.adapters import AdaptedLinear, AdapterConstant, AdapterParam, AlphaParam, OrthogonalParam
from rmtjax.adapters.methods import METHODS, DoRA, FullUpdate, LoRA, make_update
from rmtjax.adapters.methods.spectral import cayley
from tests.models.helpers import refused, relative, weights

INPUTS, OUTPUTS, RANK, SCALE = 12, 9, 3, 5.0


def normal(*shape: int, seed: int = 0, dtype="float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def layer_of(method: str, alpha: bool = False, moved: float = 0.3, rank: int = RANK, dtype=None) -> AdaptedLinear:
    """A layer with an adapter whose weights have left their start."""
    graph, state = nnx.split(nnx.eval_shape(lambda: nnx.Linear(INPUTS, OUTPUTS, dtype=dtype, rngs=nnx.Rngs(0))))
    base = nnx.merge(graph, jax.tree.map(lambda v: 0.5 * normal(*v.shape, seed=v.ndim), state))
    kernel = base.kernel[...]
    own = (
        FullUpdate(kernel) if method == "full" else make_update(method, kernel, rank, SCALE, jax.random.key(0), "here")
    )
    layer = AdaptedLinear(base, own, AlphaParam(1 + normal(OUTPUTS, seed=8)) if alpha else None)
    for i, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(layer, AdapterParam))):
        if not isinstance(variable, OrthogonalParam):
            variable[...] = variable[...] + moved * normal(*variable.shape, seed=20 + i)
    return layer


def formula(layer: AdaptedLinear, method: str, rank: int = RANK) -> np.ndarray:
    """The new weight (outputs, inputs) in float64, from the layer's variables and nothing else of the package."""
    own = {name.split(".")[-1]: w.astype(float) for name, w in weights(layer, nnx.Variable).items()}
    weight = own["kernel"].T
    frozen = np.diag(own["alpha"]) @ weight if "alpha" in own else weight
    strength = SCALE / math.sqrt(rank) if method == "rslora" else SCALE / rank
    if method == "full":
        return frozen + own["delta"].T
    if method in ("lora", "rslora", "dora"):
        new = frozen + strength * own["B"].T @ own["A"].T
        return own["magnitude"][:, None] * new / np.linalg.norm(new, axis=1, keepdims=True) if method == "dora" else new
    if method == "orthogonal":
        return frozen + strength * own["B"] @ own["A"].T
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    sign = np.sign(np.sum(u[:, :rank] * own["U"], axis=0))
    top = u[:, :rank] * sign, np.diag(s[:rank]), (vh[:rank].T * sign)
    if method == "spectral-additive":
        new = (top[0] + own["AU"]) @ top[1] @ (top[2] + own["AV"]).T
    else:
        rotations = []
        for entries in (own["QU"], own["QV"]):
            q = np.zeros((rank, rank))
            q[np.tril_indices(rank, -1)] = entries
            q -= q.T
            rotations.append((np.eye(rank) - q) @ np.linalg.inv(np.eye(rank) + q))
        new = (top[0] @ rotations[0]) @ top[1] @ (top[2] @ rotations[1]).T
    return frozen - top[0] @ top[1] @ top[2].T + new


EVERY = [*METHODS, "full"]


@pytest.mark.first(2)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("method", EVERY)
def test_formula(method, alpha):
    """diag(α) W + ΔW, as a kernel and as an output, merged or not, with more axes than two."""
    layer = layer_of(method, alpha)
    wanted = formula(layer, method)
    base = np.asarray(layer.base.kernel[...], float).T
    assert relative(wanted, base) > 0.1
    np.testing.assert_allclose(layer.kernel(), wanted.T, atol=1e-5)
    x = normal(2, 4, INPUTS, seed=5)
    y = np.asarray(x, float) @ wanted.T + np.asarray(layer.base.bias[...])
    np.testing.assert_allclose(layer(x), y, atol=1e-4)
    np.testing.assert_allclose(layer(x[0, 0]), y[0, 0], atol=1e-4)
    np.testing.assert_allclose(layer.plain()(x), y, atol=1e-4)
    assert type(layer.plain()) is nnx.Linear
    layer.merge_weights()
    np.testing.assert_allclose(layer(x), y, atol=1e-4)


@pytest.mark.first(2)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("method", EVERY)
def test_gradients(method, alpha):
    """Of the product written by hand against those of the kernel and a plain product: inputs, weights and α."""
    layer, x, g = layer_of(method, alpha), normal(2, 4, INPUTS, seed=5), normal(2, 4, OUTPUTS, seed=6)
    graph, own, rest = nnx.split(layer, nnx.Any(AdapterParam, AlphaParam), ...)

    def by_hand(trained, x):
        return jnp.sum(nnx.merge(graph, trained, rest)(x) * g)

    def plainly(trained, x):
        return jnp.sum((x @ nnx.merge(graph, trained, rest).kernel()) * g)

    got, wanted = (jax.jit(jax.grad(f, (0, 1)))(own, x) for f in (by_hand, plainly))
    mine, theirs = weights(got[0]), weights(wanted[0])
    assert len(mine) == len(weights(layer, AdapterParam)) + alpha
    for name, value in theirs.items():
        assert relative(mine[name], value) < 1e-5 and np.any(value != 0), name
    assert relative(got[1], wanted[1]) < 1e-5


@pytest.mark.parametrize("method", EVERY)
def test_alphas_gradient_is_that_of_the_loss(method):
    """Against central differences of the formula in double precision: no part of the way from α is left out."""
    layer, x, g = layer_of(method, True), normal(4, INPUTS, seed=5), normal(4, OUTPUTS, seed=6)
    graph, own, rest = nnx.split(layer, AlphaParam, ...)
    got = weights(jax.grad(lambda variables: jnp.sum(nnx.merge(graph, variables, rest)(x) * g))(own))["alpha"]
    start, wanted = np.asarray(layer.alpha[...]), []
    for i in range(OUTPUTS):
        ends = []
        for move in (1e-3, -1e-3):
            layer.alpha[...] = jnp.asarray(start).at[i].add(move)
            ends.append(float(np.sum(np.asarray(x, float) @ formula(layer, method).T * np.asarray(g))))
        wanted.append((ends[0] - ends[1]) / 2e-3)
    assert relative(got, np.array(wanted)) < 2e-3


def test_dora():
    """Rows have the norms m; and the norm counts as a constant for the gradient, as in the paper's §4.3."""
    layer = layer_of("dora")
    magnitude = layer.update.magnitude[...]
    np.testing.assert_allclose(np.linalg.norm(layer.kernel(), axis=0), np.abs(magnitude), rtol=1e-5)
    fresh = layer_of("dora", moved=0.0)
    np.testing.assert_allclose(fresh.update.magnitude[...], np.linalg.norm(fresh.base.kernel[...], axis=0), rtol=1e-6)
    x, g = normal(5, INPUTS, seed=5), normal(5, OUTPUTS, seed=6)
    graph, own, rest = nnx.split(layer, AdapterParam, ...)
    got = jax.grad(lambda variables: jnp.sum(nnx.merge(graph, variables, rest)(x) * g))(own)
    a, b, w = (np.asarray(v[...], float) for v in (layer.update.A, layer.update.B, layer.base.kernel))
    rate = np.asarray(magnitude) / np.linalg.norm(w + SCALE / RANK * a @ b, axis=0)
    to_kernel = np.asarray(x).T @ (np.asarray(g) * rate)
    assert relative(weights(got)["update.A"], SCALE / RANK * to_kernel @ b.T) < 1e-5
    assert relative(weights(got)["update.B"], SCALE / RANK * a.T @ to_kernel) < 1e-5


TINY = {"zero": 0.0, "1e-35": 1e-35, "1e-30": 1e-30, "1e-19": 1e-19, "1e20": 1e20, "1e30": 1e30}


def with_row(size: float, alpha: bool, moved: float = 0.0, custom: bool = False) -> AdaptedLinear:
    """A layer with DoRA of which the third row of W has this size; `custom` asks for the way of layers of one's own."""
    base = nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0), precision=jax.lax.Precision.HIGHEST if custom else None)
    base.kernel[...] = base.kernel[...].at[:, 2].set(size * normal(INPUTS))
    kernel = base.kernel[...]
    layer = AdaptedLinear(
        base,
        make_update("dora", kernel, RANK, SCALE, jax.random.key(0), "here"),
        AlphaParam(jnp.ones(OUTPUTS)) if alpha else None,
    )
    layer.update.B[...] = moved * normal(RANK, OUTPUTS, seed=3)
    return layer


@pytest.mark.first(2)
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", TINY.values(), ids=TINY)
def test_dora_of_rows_whose_squares_are_no_numbers(size, alpha, custom):
    """If a row vanishes or its squares leave the range, the start is the base, and gradients are the formula's."""
    layer, x = with_row(size, alpha, custom=custom), normal(4, INPUTS, seed=5)
    wanted = layer.base(x)
    largest = np.abs(wanted).max(axis=0)
    for outputs in (layer(x), layer.plain()(x), jax.jit(layer)(x)):
        assert np.all(np.abs(outputs - wanted) <= 1e-5 * largest)
    layer.merge_weights()
    assert np.all(np.abs(layer(x) - wanted) <= 1e-5 * largest)
    layer.unmerge_weights()
    norms = np.linalg.norm(np.asarray(layer.base.kernel[...], float), axis=0)
    np.testing.assert_allclose(layer.update.magnitude[...], norms, rtol=1e-6)
    graph, trained, rest = nnx.split(layer, nnx.Param, ...)
    g = normal(4, OUTPUTS, seed=6).at[:, 2].multiply(1 / max(size, 1.0))
    got = weights(jax.grad(lambda variables: jnp.sum(nnx.merge(graph, variables, rest)(x) * g))(trained))
    assert all(np.isfinite(value).all() for value in got.values())
    # B A is 0, so that m/‖w‖ is 1 in every row, that of zeros included, and B's gradient is LoRA's.
    rows, a = np.asarray(x, float), np.asarray(layer.update.A[...], float)
    assert relative(got["update.B"], SCALE / RANK * a.T @ rows.T @ np.asarray(g, float)) < 1e-4
    kernel = np.asarray(layer.base.kernel[...], float)
    direction = np.divide(kernel, norms, out=np.zeros_like(kernel), where=norms > 0)
    slopes = np.sum(rows @ direction * np.asarray(g, float), axis=0)
    np.testing.assert_allclose(got["update.magnitude"], slopes, rtol=1e-4, atol=1e-5 * np.abs(slopes).max())
    if alpha:  # nothing depends on it
        np.testing.assert_allclose(got["alpha"], 0, atol=1e-4 * max(1.0, np.abs(wanted * g).sum()))


def test_dora_gives_a_row_of_zeros_a_direction():
    """It learns: after B has moved, the row has the direction of B A and the length m, which trains."""
    layer, x = with_row(0.0, alpha=False, moved=0.1), normal(4, INPUTS, seed=5)
    np.testing.assert_array_equal(layer(x)[:, 2], 0)
    layer.update.magnitude[...] = layer.update.magnitude[...].at[2].set(0.5)
    ab = np.asarray(layer.update.A[...] @ layer.update.B[...], float)[:, 2]
    np.testing.assert_allclose(layer.kernel()[:, 2], 0.5 * ab / np.linalg.norm(ab), rtol=1e-5)
    np.testing.assert_allclose(layer.kernel(), formula(layer, "dora").T, atol=1e-5)


def test_starts():
    """LoRA's A as PEFT's, uniform on ±1/√inputs, by chance and by key; the others at zero."""
    kernel = normal(400, 300)
    a = np.asarray(LoRA(kernel, 50, 8.0, jax.random.key(1)).A[...])
    bound = 1 / math.sqrt(400)
    assert abs(a).max() < bound and abs(a).max() > 0.99 * bound
    assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 5 * math.sqrt(0.2 / a.size)  # kurtosis 1.8; false alarm 6e-7
    assert not np.array_equal(a, LoRA(kernel, 50, 8.0, jax.random.key(2)).A[...])
    for method in METHODS:
        layer = layer_of(method, moved=0.0)
        zero = {name for name, w in weights(layer, AdapterParam).items() if np.all(w == 0)}
        assert zero == {
            "lora": {"update.B"}, "rslora": {"update.B"}, "dora": {"update.B"}, "orthogonal": set(),
            "spectral-additive": {"update.AU", "update.AV"}, "spectral-rotational": {"update.QU", "update.QV"},
        }[method]  # fmt: skip


def test_orthogonal_start():
    """All r singular values of the update are a/r; and both frames point anywhere, by chance."""
    layer = layer_of("orthogonal")
    difference = np.asarray(layer.kernel() - layer.base.kernel[...])
    values = np.linalg.svd(difference, compute_uv=False)
    np.testing.assert_allclose(values, [SCALE / RANK] * RANK + [0] * (OUTPUTS - RANK), atol=1e-5)
    assert isinstance(layer.update.A, OrthogonalParam) and isinstance(layer.update.B, OrthogonalParam)
    # B is (outputs, r) as it stands in W's equation.
    assert layer.update.B.shape == (OUTPUTS, RANK) and layer.update.A.shape == (INPUTS, RANK)


def test_rotations_keep_singular_values():
    for rank in (2, OUTPUTS):
        layer = layer_of("spectral-rotational", moved=1.0, rank=rank)
        values = [np.linalg.svd(k, compute_uv=False) for k in (layer.kernel(), layer.base.kernel[...])]
        np.testing.assert_allclose(values[0], values[1], rtol=2e-5)
        assert relative(layer.kernel(), layer.base.kernel[...]) > 0.1
    q = np.asarray(cayley(normal(1), 2))
    np.testing.assert_allclose(q @ q.T, np.eye(2), atol=1e-5)
    assert np.linalg.det(q) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["spectral-additive", "spectral-rotational"])
def test_spectral_constants(method):
    """The top of the singular value decomposition of W, which nobody trains."""
    layer = layer_of(method)
    own = layer.update
    assert all(type(v) is AdapterConstant for v in (own.U, own.S, own.V))
    u, s, vh = np.linalg.svd(np.asarray(layer.base.kernel[...]).T, full_matrices=False)
    np.testing.assert_allclose(own.S[...], s[:RANK], rtol=1e-5)
    top = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    np.testing.assert_allclose((own.U[...] * own.S[...]) @ own.V[...].T, top, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("method", ["lora", "dora", "orthogonal", "spectral-additive", "spectral-rotational"])
def test_half_precision_is_not_folded(method):
    """An update far below the rounding of W is still felt: computed beside W's product, not added to W."""
    layer = layer_of(method, dtype=jnp.bfloat16)
    x = jnp.zeros((1, INPUTS), jnp.bfloat16).at[0, :2].set(jnp.array([1.0, -1.0], jnp.bfloat16))
    base = layer.base
    base.kernel[...] = base.kernel[...].at[1].set(base.kernel[0])  # both rows alike, so that x W = 0
    base.bias[...] = jnp.zeros(OUTPUTS)
    own = layer.update
    if method == "orthogonal":
        own.scale = 1e-4
    for name in ("B", "AU", "AV", "QU", "QV"):
        if hasattr(own, name) and method != "orthogonal":
            getattr(own, name)[...] = 1e-4 * getattr(own, name)[...]
    wanted = x.astype(jnp.float32) @ (
        layer.kernel() - base.kernel[...] * (own.rates(base.kernel[...]) if method == "dora" else 1)
    )
    assert layer(x).dtype == jnp.bfloat16 and 0 < np.abs(wanted).max() < 2e-3
    assert relative(layer(x), wanted) < 0.02
    folded = x @ layer.kernel().astype(jnp.bfloat16)
    assert relative(folded, wanted) > 0.1


def test_alpha_in_half_precision():
    """α = 1.001 rounds to 1 in bfloat16, so it meets W before W is rounded: on average each weight is as much larger."""
    base = nnx.Linear(200, 100, dtype=jnp.bfloat16, use_bias=False, rngs=nnx.Rngs(0))
    base.kernel[...] = 0.5 + jnp.abs(normal(200, 100))
    got = AdaptedLinear(base, None, AlphaParam(jnp.full(100, 1.001)))(jnp.eye(200, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    # Roundings of 2⁻⁹ at most, over 20000 weights: 2e-5.
    assert abs(np.mean(got.astype(np.float32) / base.kernel[...]) - 1.001) < 1e-4


def test_layer_without_bias_or_update():
    base = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    x, alpha = normal(2, 4), jnp.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(AdaptedLinear(base, None, AlphaParam(alpha))(x), base(x) * alpha, rtol=1e-6)
    np.testing.assert_array_equal(AdaptedLinear(base)(x), base(x))


def test_under_vmap():
    layer, x = layer_of("lora", True), normal(3, 4, INPUTS)
    np.testing.assert_allclose(jax.vmap(layer)(x), layer(x), atol=1e-5)
    slopes = jax.vmap(jax.grad(lambda x: jnp.sum(layer(x) ** 2)))(x)
    np.testing.assert_allclose(slopes, jax.grad(lambda x: jnp.sum(layer(x) ** 2))(x), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "rank", "scale", "parts"),
    [
        ("lora", 0, 1.0, ["rank = 0", "whole number ≥ 1"]),
        ("orthogonal", 10, 1.0, ["rank = 10", "1 to 9", "here"]),
        ("lora", 2.0, 1.0, ["rank = 2.0", "whole number"]),
        ("lora", True, 1.0, ["rank = True", "whole number"]),
        ("spectral-rotational", 1, 1.0, ["rank = 1", "at least 2"]),
        ("dora", 2, math.nan, ["lora_alpha = nan", "finite"]),
        ("lroa", 2, 1.0, ["adapter 'lroa'", "did you mean 'lora'"]),
    ],
)
def test_refused(method, rank, scale, parts):
    with refused(*parts):
        make_update(method, normal(INPUTS, OUTPUTS), rank, scale, jax.random.key(0), "here")


def test_strength():
    kernel = normal(INPUTS, OUTPUTS)
    assert LoRA(kernel, 4, 6.0, jax.random.key(0)).strength == 1.5
    assert DoRA(kernel, 4, 6.0, jax.random.key(0), stabilised=True).strength == 3.0
