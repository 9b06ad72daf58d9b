"""Each update against its formula in NumPy: kernels, outputs, gradients, singular values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmtjax.adapters import AdaptedLinear, AdapterConstant, AdapterParam, AlphaParam, OrthogonalParam
from rmtjax.adapters.methods import METHODS, DoRA, FullUpdate, LoRA, make_update
from rmtjax.adapters.methods.spectral import cayley
from tests.adapters.helpers import set_to
from tests.helpers import array
from tests.models.helpers import refused, relative, weights

INPUTS, OUTPUTS, RANK, SCALE = 12, 9, 3, 5.0


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Layers are made and asked in compiled programs: each of their operations by itself would be compiled for itself.
make = nnx.jit(
    lambda kernel, method, rank: make_update(method, kernel, rank, SCALE, jax.random.key(0), "here"),
    static_argnums=(1, 2),
)
kernel_of = nnx.jit(lambda layer: layer.kernel())
called = nnx.jit(lambda layer, x: layer(x))


@functools.partial(nnx.jit, static_argnums=3)
def slopes(layer, x, g, kind):
    """Gradients of the sum of outputs times g, with respect to variables of a kind."""
    graph, own, rest = nnx.split(layer, kind, ...)
    return jax.grad(lambda own: jnp.sum(nnx.merge(graph, own, rest)(x) * g))(own)


def linear(inputs: int = INPUTS, outputs: int = OUTPUTS, **options) -> nnx.Linear:
    """A layer with weights by NumPy."""
    graph, state = nnx.split(nnx.eval_shape(lambda: nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)))
    return nnx.merge(graph, jax.tree.map(lambda v: array(0.5 * normal(*v.shape, seed=v.ndim)), state))


@functools.cache
def _layer(method: str, rank: int, dtype) -> AdaptedLinear:
    base = linear(dtype=dtype)
    return AdaptedLinear(
        base, FullUpdate(base.kernel[...]) if method == "full" else make(base.kernel[...], method, rank)
    )


def layer_of(method: str, alpha: bool = False, moved: float = 0.3, rank: int = RANK, dtype=None) -> AdaptedLinear:
    """A layer with an adapter whose weights have left their start."""
    layer = nnx.clone(_layer(method, rank, dtype))
    if alpha:
        layer.alpha = nnx.data(AlphaParam(array(1 + normal(OUTPUTS, seed=8))))
    for i, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(layer, AdapterParam))):
        if not isinstance(variable, OrthogonalParam):
            set_to(variable, np.asarray(variable[...]) + np.float32(moved) * normal(*variable.shape, seed=20 + i))
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
    x = normal(2, 4, INPUTS, seed=5)
    y = np.asarray(x, float) @ wanted.T + np.asarray(layer.base.bias[...])
    kernel, *outputs, of_one = ways(layer, x)
    np.testing.assert_allclose(kernel, wanted.T, atol=1e-5)
    for got in outputs:
        np.testing.assert_allclose(got, y, atol=1e-4)
    np.testing.assert_allclose(of_one, y[0, 0], atol=1e-4)


@nnx.jit
def ways(layer, x):
    """The kernel; outputs of the layer, of its plain copy and of the merged layer; and that for a single row."""
    plain = layer.plain()
    assert type(plain) is nnx.Linear
    merged = nnx.clone(layer)
    merged.merge_weights()
    return layer.kernel(), layer(x), plain(x), merged(x), layer(x[0, 0])


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
    got = weights(slopes(layer, x, g, AlphaParam))["alpha"]
    start, wanted = np.asarray(layer.alpha[...]), []
    for i in range(OUTPUTS):
        ends = []
        for move in (1e-3, -1e-3):
            set_to(layer.alpha, start + np.float32(move) * (np.arange(OUTPUTS) == i))
            ends.append(float(np.sum(np.asarray(x, float) @ formula(layer, method).T * np.asarray(g))))
        wanted.append((ends[0] - ends[1]) / 2e-3)
    assert relative(got, np.array(wanted)) < 2e-3


def test_dora():
    """Rows have the norms m; and the norm counts as a constant for the gradient, as in the paper's §4.3."""
    layer = layer_of("dora")
    magnitude = np.asarray(layer.update.magnitude[...])
    np.testing.assert_allclose(np.linalg.norm(kernel_of(layer), axis=0), np.abs(magnitude), rtol=1e-5)
    fresh = layer_of("dora", moved=0.0)
    np.testing.assert_allclose(fresh.update.magnitude[...], np.linalg.norm(fresh.base.kernel[...], axis=0), rtol=1e-6)
    x, g = normal(5, INPUTS, seed=5), normal(5, OUTPUTS, seed=6)
    got = slopes(layer, x, g, AdapterParam)
    a, b, w = (np.asarray(v[...], float) for v in (layer.update.A, layer.update.B, layer.base.kernel))
    rate = magnitude / np.linalg.norm(w + SCALE / RANK * a @ b, axis=0)
    to_kernel = x.T @ (g * rate)
    assert relative(weights(got)["update.A"], SCALE / RANK * to_kernel @ b.T) < 1e-5
    assert relative(weights(got)["update.B"], SCALE / RANK * a.T @ to_kernel) < 1e-5


TINY = {"zero": 0.0, "1e-35": 1e-35, "1e-30": 1e-30, "1e-19": 1e-19, "1e20": 1e20, "1e30": 1e30}


def with_row(size: float, alpha: bool, moved: float = 0.0, custom: bool = False) -> AdaptedLinear:
    """A layer with DoRA of which the third row of W has this size; `custom` asks for the way of layers of one's own."""
    base = linear(precision=jax.lax.Precision.HIGHEST if custom else None)
    kernel = np.array(base.kernel[...])
    kernel[:, 2] = np.float32(size) * normal(INPUTS)
    set_to(base.kernel, kernel)
    set_to(base.bias, np.zeros(OUTPUTS))
    layer = AdaptedLinear(
        base, make(base.kernel[...], "dora", RANK), AlphaParam(array(np.ones(OUTPUTS))) if alpha else None
    )
    set_to(layer.update.B, moved * normal(RANK, OUTPUTS, seed=3))
    return layer


@pytest.mark.first(2)
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", TINY.values(), ids=TINY)
def test_dora_of_rows_whose_squares_are_no_numbers(size, alpha, custom):
    """If a row vanishes or its squares leave the range, the start is the base, and gradients are the formula's."""
    layer, x = with_row(size, alpha, custom=custom), normal(4, INPUTS, seed=5)
    wanted = np.asarray(called(layer.base, x))
    largest = np.abs(wanted).max(axis=0)
    _, *outputs, _ = ways(layer, x[None])
    for got in (layer(x), *outputs):
        assert np.all(np.abs(got - wanted) <= 1e-5 * largest)
    norms = np.linalg.norm(np.asarray(layer.base.kernel[...], float), axis=0)
    np.testing.assert_allclose(layer.update.magnitude[...], norms, rtol=1e-6)
    g = normal(4, OUTPUTS, seed=6)
    g[:, 2] /= np.float32(max(size, 1.0))
    got = weights(slopes(layer, x, g, nnx.Param))
    assert all(np.isfinite(value).all() for value in got.values())
    # B A is 0, so that m/‖w‖ is 1 in every row, that of zeros included, and B's gradient is LoRA's.
    rows, a = np.asarray(x, float), np.asarray(layer.update.A[...], float)
    assert relative(got["update.B"], SCALE / RANK * a.T @ rows.T @ np.asarray(g, float)) < 1e-4
    kernel = np.asarray(layer.base.kernel[...], float)
    direction = np.divide(kernel, norms, out=np.zeros_like(kernel), where=norms > 0)
    along = np.sum(rows @ direction * np.asarray(g, float), axis=0)
    np.testing.assert_allclose(got["update.magnitude"], along, rtol=1e-4, atol=1e-5 * np.abs(along).max())
    if alpha:  # nothing depends on it
        np.testing.assert_allclose(got["alpha"], 0, atol=1e-4 * max(1.0, np.abs(wanted * g).sum()))


def test_dora_gives_a_row_of_zeros_a_direction():
    """It learns: after B has moved, the row has the direction of B A and the length m, which trains."""
    layer, x = with_row(0.0, alpha=False, moved=0.1), normal(4, INPUTS, seed=5)
    np.testing.assert_array_equal(np.asarray(called(layer, x))[:, 2], 0)
    magnitude = np.array(layer.update.magnitude[...])
    magnitude[2] = 0.5
    set_to(layer.update.magnitude, magnitude)
    kernel, a, b = (np.asarray(v, float) for v in (kernel_of(layer), layer.update.A[...], layer.update.B[...]))
    ab = (a @ b)[:, 2]
    np.testing.assert_allclose(kernel[:, 2], 0.5 * ab / np.linalg.norm(ab), rtol=1e-5)
    np.testing.assert_allclose(kernel, formula(layer, "dora").T, atol=1e-5)


def test_starts():
    """LoRA's A as PEFT's, uniform on ±1/√inputs, by chance and by key; the others at zero."""
    kernel = normal(400, 300)
    a, other = (np.asarray(LoRA(kernel, 50, 8.0, jax.random.key(seed)).A[...]) for seed in (1, 2))
    bound = 1 / math.sqrt(400)
    assert abs(a).max() < bound and abs(a).max() > 0.99 * bound
    assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 5 * math.sqrt(0.2 / a.size)  # kurtosis 1.8; false alarm 6e-7
    assert not np.array_equal(a, other)
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
    difference = np.asarray(kernel_of(layer)) - np.asarray(layer.base.kernel[...])
    values = np.linalg.svd(difference, compute_uv=False)
    np.testing.assert_allclose(values, [SCALE / RANK] * RANK + [0] * (OUTPUTS - RANK), atol=1e-5)
    assert isinstance(layer.update.A, OrthogonalParam) and isinstance(layer.update.B, OrthogonalParam)
    # B is (outputs, r) as it stands in W's equation.
    assert layer.update.B.shape == (OUTPUTS, RANK) and layer.update.A.shape == (INPUTS, RANK)


def test_rotations_keep_singular_values():
    for rank in (2, OUTPUTS):
        layer = layer_of("spectral-rotational", moved=1.0, rank=rank)
        kernels = kernel_of(layer), layer.base.kernel[...]
        values = [np.linalg.svd(k, compute_uv=False) for k in kernels]
        np.testing.assert_allclose(values[0], values[1], rtol=2e-5)
        assert relative(*kernels) > 0.1
    q = np.asarray(jax.jit(cayley, static_argnums=1)(normal(1), 2))
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
    left, values, right = (np.asarray(v[...]) for v in (own.U, own.S, own.V))
    np.testing.assert_allclose((left * values) @ right.T, top, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("method", ["lora", "dora", "orthogonal", "spectral-additive", "spectral-rotational"])
def test_half_precision_is_not_folded(method):
    """An update far below the rounding of W is still felt: computed beside W's product, not added to W."""
    layer = layer_of(method, dtype=jnp.bfloat16)
    x = np.zeros((1, INPUTS), jnp.bfloat16)
    x[0, :2] = 1, -1
    base = layer.base
    kernel = np.array(base.kernel[...])
    kernel[1] = kernel[0]  # both rows alike, so that x W = 0
    set_to(base.kernel, kernel)
    set_to(base.bias, np.zeros(OUTPUTS))
    own = layer.update
    if method == "orthogonal":
        own.scale = 1e-4
    for name in ("B", "AU", "AV", "QU", "QV"):
        if hasattr(own, name) and method != "orthogonal":
            set_to(getattr(own, name), 1e-4 * np.asarray(getattr(own, name)[...]))

    def parts(layer):
        kernel, frozen = layer.kernel(), layer.base.kernel[...]
        return kernel, kernel - frozen * (layer.update.rates(frozen) if method == "dora" else 1)

    kernel, added = map(np.asarray, nnx.jit(parts)(layer))
    wide, got = x.astype(np.float32), layer(x)  # one operation after the other: a program may round less often
    wanted, folded = wide @ added, wide @ kernel.astype(jnp.bfloat16).astype(np.float32)
    assert got.dtype == jnp.bfloat16 and 0 < np.abs(wanted).max() < 2e-3
    assert relative(got, wanted) < 0.02
    assert relative(folded, wanted) > 0.1


def test_alpha_in_half_precision():
    """α = 1.001 rounds to 1 in bfloat16, so it meets W before W is rounded: on average each weight is as much larger."""
    base = linear(200, 100, dtype=jnp.bfloat16, use_bias=False)
    set_to(base.kernel, 0.5 + np.abs(normal(200, 100)))
    layer = AdaptedLinear(base, None, AlphaParam(array(np.full(100, 1.001))))
    got = layer(np.eye(200, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    # Roundings of 2⁻⁹ at most, over 20000 weights: 2e-5.
    assert abs(np.mean(np.asarray(got, np.float32) / np.asarray(base.kernel[...])) - 1.001) < 1e-4


def test_layer_without_bias_or_update():
    base = linear(4, 3, use_bias=False)
    x, alpha = normal(2, 4), array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(AdaptedLinear(base, None, AlphaParam(alpha))(x), base(x) * alpha, rtol=1e-6)
    np.testing.assert_array_equal(AdaptedLinear(base)(x), base(x))


def test_under_vmap():
    layer, x = layer_of("lora", True), normal(3, 4, INPUTS)
    np.testing.assert_allclose(jax.jit(jax.vmap(layer))(x), layer(x), atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(layer(x) ** 2))
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(x), jax.jit(slope)(x), atol=1e-4)


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
    assert nnx.eval_shape(lambda: LoRA(kernel, 4, 6.0, jax.random.key(0))).strength == 1.5
    assert nnx.eval_shape(lambda: DoRA(kernel, 4, 6.0, jax.random.key(0), stabilised=True)).strength == 3.0
