"""Layer norm, GELU, attention and dropout against the obvious versions."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from scipy import special, stats

from rmtjax.models import DropoutKey
from rmtjax.models import _fast_cpu as functional
from rmtjax.models import _plain as plain
from rmtjax.models import functions as chosen
from rmtjax.models._fast_cpu import _apart, attention, dropout, gelu, layer_norm
from rmtjax.models.functions import ACTIVATIONS, activation, plain_functions
from tests.helpers import array
from tests.models.helpers import batch, classifier, refused

EPS = 1e-5
norm = functools.partial(layer_norm, eps=EPS)


def normal(*shape: int, seed: int = 0, dtype="float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.dtype(dtype))


def with_slopes(function):
    """Values at arguments, and what comes back to each of them for a g, as one program of (g, *arguments)."""

    def both(g, *arguments):
        out, back = jax.vjp(function, *arguments)
        return out, *back(g)

    return jax.jit(both)


def layer_norm_of(x, scale, bias, eps):
    """As the definition has it."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * scale + bias


@jax.jit
def _noise(step, examples):
    return DropoutKey.of(jax.random.fold_in(jax.random.key(7), step), examples)


def noise(*examples: int, step: int = 0) -> DropoutKey:
    return _noise(step, np.array(examples))


dropped = jax.jit(dropout, static_argnums=(1, 3))


# -- layer norm and GELU -----------------------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("shape", [(5,), (3, 8), (2, 3, 16)])
@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_layer_norm(shape, eps):
    """Values and gradients of all three arguments, against derivatives of the definition in float64."""
    x, g = 3 * normal(*shape) + 1, normal(*shape, seed=1)
    scale, bias = 1 + normal(shape[-1], seed=2), normal(shape[-1], seed=3)

    got = with_slopes(lambda *a: layer_norm(*a, eps))(g, x, scale, bias)
    with jax.enable_x64(True):
        wanted = with_slopes(lambda *a: layer_norm_of(*a, eps))(*(a.astype(np.float64) for a in (g, x, scale, bias)))
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == jnp.float32 and other.dtype == jnp.float64
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max(), rtol=0)


def test_gradients_by_differences():
    x, scale, bias = normal(2, 6), 1 + normal(6, seed=2), normal(6, seed=3)
    check_grads(jax.jit(norm), (x, scale, bias), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
    check_grads(jax.jit(gelu), (x,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_layer_norm_in_half_precision():
    """Moments in float32: the result is the true one, rounded once (half an ulp, 2⁻⁹), however far off zero the mean.

    One operation after the other: within a program XLA may leave out the roundings that this is about.
    """
    x, g = normal(4, 256, dtype="bfloat16") + jnp.bfloat16(8), normal(4, 256, seed=1, dtype="bfloat16")
    scale, bias = 1 + normal(256, seed=2), normal(256, seed=3)
    got, back = jax.vjp(lambda x: norm(x, scale, bias), jax.device_put(x))
    slope = back(jax.device_put(g))[0]
    wanted, exactly = with_slopes(lambda x: layer_norm_of(x, scale, bias, EPS))(g.astype("f4"), x.astype("f4"))
    assert got.dtype == slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), wanted, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(np.asarray(slope, np.float32), exactly, rtol=2**-8, atol=1e-6)


def test_gelu():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    exact = np.asarray(x, np.float64)
    cdf, density = stats.norm.cdf(exact), stats.norm.pdf(exact)
    value, slope = with_slopes(gelu)(np.ones_like(x), x)
    np.testing.assert_allclose(value, exact * cdf, atol=1e-6)
    np.testing.assert_allclose(slope, cdf + exact * density, atol=1e-6)
    np.testing.assert_allclose(value, jax.nn.gelu(x, approximate=False), atol=1e-6)
    half = array(x, jnp.bfloat16)
    exact = np.asarray(half, np.float64)
    value, slope = gelu(half), jax.vmap(jax.grad(gelu))(half)  # not as one program, which would round less often
    assert value.dtype == slope.dtype == jnp.bfloat16
    # A few roundings of 2⁻⁹ each, of numbers up to |x|.
    np.testing.assert_array_less(
        np.abs(np.asarray(value, float) - exact * stats.norm.cdf(exact)), 0.02 * (1 + abs(exact))
    )
    np.testing.assert_allclose(
        np.asarray(slope, float), stats.norm.cdf(exact) + exact * stats.norm.pdf(exact), atol=0.02
    )


def test_activations():
    """By the formulas; `gelu_new` is the approximation by tanh."""
    x = np.linspace(-4, 4, 101)
    wanted = {
        "gelu": x * special.ndtr(x),
        "gelu_new": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": np.maximum(x, 0),
        "silu": x * special.expit(x),
        "tanh": np.tanh(x),
    }
    wanted |= {"gelu_pytorch_tanh": wanted["gelu_new"], "swish": wanted["silu"]}
    assert set(wanted) == set(ACTIVATIONS)
    got = jax.jit(lambda x: {name: activation(name)(x) for name in wanted})(x.astype(np.float32))
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, atol=1e-6, err_msg=name)
    with refused("hidden_act 'gelu_nwe'", "did you mean 'gelu_new'", "relu"):
        activation("gelu_nwe")


# -- kept apart from its neighbours ------------------------------------------------------------------------------------


def test_apart_is_a_loop_of_one_turn_on_processors():
    """The loop is what keeps XLA from fusing, so it has to be in the program; and it runs once, whatever its length hangs on."""
    program = jax.jit(lambda x: _apart(jnp.sin, x + 1)).lower(jnp.ones(3)).compile().as_text()
    assert (" while(" in program) == (jax.default_backend() == "cpu")
    twice = jax.jit(lambda x: _apart(lambda x: 2 * x, x))
    for first in (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, np.copysign(np.nan, -1), 1e-45, -3e38):
        x = array([[first, 2.0], [3.0, 4.0]])
        np.testing.assert_array_equal(twice(x), 2 * x)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(_apart(lambda x: 2 * x, jax.device_put(np.array([-1e300]))), [-2e300])
    for dtype in ("bfloat16", "float16", "int32"):
        ones = np.ones(2, jnp.dtype(dtype))
        np.testing.assert_array_equal(twice(-ones), -2 * ones)


@pytest.mark.thorough
def test_under_transformations():
    x, scale, bias = normal(3, 4, 8), 1 + normal(8, seed=2), normal(8, seed=3)
    wanted = jax.jit(functools.partial(layer_norm_of, eps=EPS))(x, scale, bias)
    once = jax.vmap(norm, (0, None, None))
    mapped = jax.jit(lambda x, scale, bias: jax.lax.map(lambda row: norm(row, scale, bias), x))
    for f in (norm, jax.jit(norm), jax.jit(once), jax.jit(jax.vmap(once, (0, None, None))), mapped):
        np.testing.assert_allclose(f(x, scale, bias), wanted, atol=2e-6)

    # Per-example gradients, and the gradient through a rematerialised call.
    def slopes(f):
        slope = jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1, 2))
        return jax.jit(jax.vmap(slope, (0, None, None)))(x, scale, bias)

    exact = slopes(functools.partial(layer_norm_of, eps=EPS))
    for f in (norm, jax.checkpoint(norm)):
        for a, b in zip(slopes(f), exact, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert norm(jnp.zeros((0, 8)), scale, bias).shape == (0, 8)


of_rows = with_slopes(norm)


@pytest.mark.parametrize("bad", [np.nan, np.copysign(np.nan, -1), np.inf, -np.inf])
def test_what_is_no_number_spoils_its_own_row_alone(bad):
    """The first number of all, which sets the loop's length, too; in values and in what comes back."""
    x, scale, bias = normal(3, 8), 1 + normal(8, seed=2), normal(8, seed=3)
    spoilt = x.copy()
    spoilt[0, 0] = bad
    clean, back = map(np.asarray, of_rows(x, x, scale, bias)[:2])
    for g, at in ((x, spoilt), (spoilt, x)):
        values, slopes = map(np.asarray, of_rows(g, at, scale, bias)[:2])
        np.testing.assert_array_equal(values[1:], clean[1:])
        np.testing.assert_array_equal(slopes[1:], back[1:])
        assert np.isnan(slopes[0]).any()


# -- attention ---------------------------------------------------------------------------------------------------------


def test_attention():
    q, k, v = (normal(2, 3, n, 4, seed=i) for i, n in enumerate((5, 6, 6)))
    mask = np.ones((2, 1, 1, 6), np.float32)
    mask[1, ..., 2:] = 0

    @jax.jit
    def outputs(q, k, v, bias, key):
        dropped = attention(q, k, jnp.ones_like(v), None, 0.5, key, 3)
        keep = dropout(jnp.ones((2, 3, 5, 6)), 0.5, key, 3)
        return attention(q, k, v, bias), attention(q, k, v, None), dropped[..., 0], keep

    bias = np.where(mask > 0, 0, np.finfo(np.float32).min).astype(np.float32)
    got, without, dropped, keep = map(np.asarray, outputs(q, k, v, bias, noise(0, 1)))
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / 2
    weights = np.exp(scores) * mask
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(got, weights @ v, atol=1e-6)
    np.testing.assert_allclose(without, special.softmax(scores, -1) @ v, atol=1e-6)
    # Probabilities are dropped, not values: with values of one, what is left is their sum.
    np.testing.assert_allclose(dropped, (special.softmax(scores, -1) * keep).sum(-1), atol=1e-6)


# -- dropout -----------------------------------------------------------------------------------------------------------


def kept(shape, rate=0.5, examples=(0,), place=0, step=0) -> np.ndarray:
    """Return the mask of kept entries of ones (examples, *shape)."""
    x = np.ones((len(examples), *shape), np.float32)
    return np.asarray(dropped(x, rate, noise(*examples, step=step), place)) > 0


def test_no_dropout_is_the_same_array():
    x = normal(2, 3)
    assert dropout(x, 0.5, None, 0) is x and dropout(x, 0.0, noise(0, 1), 0) is x


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    """Kept numbers are x/(1 − rate), the others 0, and as many as there should be: 4.5 standard errors, false alarm 7e-6."""
    x = np.abs(normal(16, 64, 128)) + np.float32(0.1)
    out = np.asarray(dropped(x, rate, noise(*range(16)), 2))
    mask = out > 0
    np.testing.assert_allclose(out, np.where(mask, x / np.float32(1 - rate), 0), rtol=1e-6)
    assert abs(mask.mean() - (1 - rate)) < 4.5 * np.sqrt(rate * (1 - rate) / mask.size)


def test_expectation():
    """Over 400 steps each of 512 numbers keeps its mean: the sum of squared z-scores is χ², false alarm 1e-5."""
    x, rate = np.abs(normal(4, 128)) + np.float32(0.5), 0.3

    @jax.jit
    def draws():
        keys = jax.random.split(jax.random.key(3), 400)
        return jax.vmap(lambda key: dropout(x, rate, DropoutKey.of(key, jnp.arange(4)), 5))(keys)

    z = (np.mean(np.asarray(draws()), 0) / x - 1) / np.sqrt(rate / (1 - rate) / 400)
    assert stats.chi2.sf(np.sum(np.square(z)), z.size) > 1e-5 < stats.chi2.cdf(np.sum(np.square(z)), z.size)


def test_gradient_has_the_same_mask():
    x, g, key = normal(3, 4, 5), normal(3, 4, 5, seed=1), noise(4, 2, 9)
    wanted = np.asarray(dropped(x, 0.4, key, 1))

    def function(x):
        return dropout(x, 0.4, key, 1)

    out, back = jax.vjp(function, array(x))
    results = [
        (out, back(array(g))[0]),
        *(with_slopes(wrap(function))(g, x) for wrap in (jax.jit, jax.checkpoint)),
    ]
    for out, slope in results:
        np.testing.assert_allclose(slope, np.where(wanted != 0, g / np.float32(0.6), 0), rtol=1e-6)
        np.testing.assert_array_equal(out, wanted)
    half = np.asarray(dropped(x.astype(jnp.bfloat16), 0.4, key, 1))
    assert half.dtype == jnp.bfloat16 and np.array_equal(half != 0, wanted != 0)


@pytest.mark.thorough
def test_a_mask_belongs_to_its_example():
    """Not to its place in the batch, to the others there, or to how far the batch is padded."""
    shape = (3, 6, 6)
    whole = kept(shape, examples=(5, 8, 300, 2))
    np.testing.assert_array_equal(kept(shape, examples=(300, 5)), whole[[2, 0]])
    for shorter in ((2, 4, 5), (3, 1, 6)):
        part = tuple(slice(n) for n in (4, *shorter))
        np.testing.assert_array_equal(kept(shorter, examples=(5, 8, 300, 2)), whole[part])
    each = jax.jit(jax.vmap(lambda i: dropout(jnp.ones((1, *shape)), 0.5, _noise(0, i[None]), 0)))
    np.testing.assert_array_equal(np.asarray(each(np.array([5, 8])))[:, 0] > 0, whole[:2])


@pytest.mark.thorough
def test_masks_are_independent():
    """Across places, examples and steps, and between entries of one mask.

    Correlations of 65536 entries are normal with standard error 1/256: none beyond 5.7 of them among about 1400, false
    alarm 2e-5; and the squares of all are χ² together, false alarm 2e-5. Lags and rows: 1e-5 together.
    """
    shape = (256, 256)
    places, examples = [0, 1, 2, 3, 30, 1 << 16, (1 << 16) + 1], (0, 1, 2, 3, 64, 1 << 20)
    masks = [kept(shape, examples=examples, place=place) for place in places]
    masks += [kept(shape, examples=examples[:4], step=step) for step in (1, 2, 1000)]
    signs = np.concatenate(masks).reshape(-1, shape[0] * shape[1]) * 2.0 - 1
    z = (signs @ signs.T / 256)[np.triu_indices(len(signs), 1)]
    assert np.abs(z).max() < 5.7 and len(z) > 1000
    square = np.sum(np.square(z))
    assert 1e-5 < stats.chi2.cdf(square, z.size) < 1 - 1e-5
    # Neighbours along both axes, and all pairs of rows and of columns of one mask.
    signs = kept(shape, examples=(0, 1))[0] * 2.0 - 1
    lagged = [np.sum(signs[i:, j:] * signs[: 256 - i, : 256 - j]) / np.sqrt((256 - i) * (256 - j)) for i, j in LAGS]
    assert np.abs(lagged).max() < 5.5
    for one in (signs, signs.T):
        between = (one @ one.T / 16)[np.triu_indices(256, 1)]
        assert abs(np.sum(np.square(between)) - between.size) < 5.5 * np.sqrt(2 * between.size)


LAGS = [(i, j) for i in range(12) for j in range(12) if i or j]


def test_patterns_of_a_mask_are_uniform():
    """Of 8 neighbours at rate ½ all 256 patterns are alike frequent, and at 0.1 as many are dropped as the binomial law says.

    Two-sided χ² tests, false alarm 4e-5 together.
    """
    bits = kept((1024, 512), examples=(3,)).reshape(-1, 8)
    counts = np.bincount(bits @ (1 << np.arange(8)), minlength=256)
    assert 1e-5 < stats.chisquare(counts).pvalue < 1 - 1e-5
    dropped = 16 - kept((1024, 512), rate=0.1, examples=(3,)).reshape(-1, 16).sum(1)
    expected = len(dropped) * stats.binom.pmf(np.arange(6), 16, 0.1)
    counts = np.append(np.bincount(dropped, minlength=6)[:6], (dropped > 5).sum())
    assert 1e-5 < stats.chisquare(counts, np.append(expected, len(dropped) - expected.sum())).pvalue < 1 - 1e-5


def test_no_two_examples_share_a_mask():
    """64 bits of 5000 examples: two alike by chance once in 1e12."""
    bits = np.packbits(kept((64,), examples=range(5000)), axis=1)
    assert len(np.unique(bits, axis=0)) == 5000
    assert len(np.unique(np.asarray(noise(*range(5000)).word))) > 4990


def test_no_two_entries_share_a_number(monkeypatch):
    """Heads, queries and keys of a mask are all counted differently; a stride of 2⁷, for one, would repeat rows of 256."""
    seen = []
    monkeypatch.setattr(functional, "_mixed", lambda x: seen.append(x) or x)
    functional._kept(DropoutKey(jnp.zeros(1, jnp.uint32)), (1, 12, 256, 256), 0.5)
    assert len(np.unique(seen[0])) == 12 * 256 * 256


# -- the plain functions -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_plain_functions_are_equal():
    """Values and gradients, to the rounding of single precision; of dropout, whose masks are others, share and mean."""
    x, scale, bias = 3 * normal(4, 24), 1 + normal(24, seed=2), normal(24, seed=3)
    q, k, v = (normal(2, 3, 5, 8, seed=s) for s in range(3))
    mask = np.where(np.arange(5) < 4, 0, -np.inf).astype(np.float32)[None, None, None].repeat(2, 0)
    cases = {
        "layer_norm": (lambda f: functools.partial(f, eps=EPS), (x, scale, bias)),
        "gelu": (lambda f: f, (x,)),
        "attention": (lambda f: lambda q, k, v: f(q, k, v, mask), (q, k, v)),
    }
    for name, (bind, arguments) in cases.items():
        results = []
        for module in (functional, plain):
            results.append(with_slopes(bind(getattr(module, name)))(normal(*arguments[0].shape, seed=9), *arguments))
        for fast, slow in zip(*results, strict=True):
            np.testing.assert_allclose(fast, slow, atol=2e-6 * np.abs(slow).max(), rtol=2e-6, err_msg=name)
    ones, key = np.ones((8, 5000), np.float32), noise(*range(8))
    kept = [np.asarray(jax.jit(f.dropout, static_argnums=(1, 3))(ones, 0.3, key, 2)) for f in (functional, plain)]
    for mask in kept:
        assert set(np.unique(mask)) == {0, np.float32(1 / 0.7)} and abs((mask > 0).mean() - 0.7) < 0.015  # 6.5 sd
    assert np.any(kept[0] != kept[1])
    assert plain.dropout(x, 0.3, None, 0) is x


@pytest.mark.thorough
def test_one_switch_chooses_the_plain_functions(monkeypatch):
    """The choice holds where a model is traced, and only within the context; its logits are the same."""
    model = classifier()
    data = batch(model.config)
    fast = nnx.jit(lambda model, *data: model(*data))(model, *data)
    for name in ("layer_norm", "gelu", "dropout", "attention"):
        for module, other in ((functional, plain), (plain, functional)):
            with monkeypatch.context() as patch, plain_functions() if module is plain else contextlib.nullcontext():
                patch.setattr(module, name, lambda *_, **__: "called")
                patch.setattr(other, name, None)
                assert getattr(chosen, name)(1) == "called"
    with plain_functions():
        slow = nnx.jit(lambda model, *data: model(*data))(model, *data)
        np.testing.assert_allclose(slow, fast, atol=1e-5)
