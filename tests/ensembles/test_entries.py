"""Entries of dense matrices: the law that the name says, its variance or its tail as the unit, one draw a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax._checks import whole
from rmtjax._errors import InputError
from rmtjax.ensembles import entries as module
from rmtjax.ensembles.entries import ENTRIES, HEAVY, entries, floating, parse_entries, positive

# False alarms: KS at p < 1e-5, moments at 4.5 standard errors (7e-6), sixty checks: 5e-4 for the file. Seeds are fixed.
P, Z = 1e-5, 4.5
SIZE = 400_000
# Fourth and eighth moments, where they exist; Student's t at ν = 10 has a fourth of 3 + 6/(ν − 4) but needs ν > 8 for
# its standard error, and sparse entries multiply the normal's 3 and 105 by 1/q and 1/q³.
FOURTH = {
    "gaussian": (3, 105),
    "rademacher": (1, 1),
    "uniform": (9 / 5, 9),
    "student-t:10": (4, 105 * 8**4 / (8 * 6 * 4 * 2)),
    "sparse:0.2": (15, 105 / 0.2**3),
    "sparse": (30, 105 / 0.1**3),
    "sparse:1": (3, 105),
}
SECOND_ONLY = ["student-t", "student-t:4.5"]


@pytest.fixture(autouse=True)
def double():
    """Entries are drawn in float64."""
    with jax.enable_x64(True):
        yield


def draw(law: str, seed: int = 1) -> np.ndarray:
    """Many entries of one key."""
    return np.asarray(jax.jit(lambda k: entries(k, (SIZE,), law))(jax.random.key(seed)))


@pytest.mark.first(2)
@pytest.mark.parametrize("law", [*FOURTH, *SECOND_ONLY])
def test_moments(law):
    x = draw(law)
    assert abs(np.mean(x)) < Z / np.sqrt(SIZE)
    if law in FOURTH:
        fourth, eighth = FOURTH[law]
    else:
        nu = float(law.partition(":")[2] or 5)
        fourth = 3 + 6 / (nu - 4)
    assert abs(np.mean(x**2) - 1) <= Z * np.sqrt((fourth - 1) / SIZE)
    if law in FOURTH:
        assert abs(np.mean(x**4) - fourth) <= Z * np.sqrt((eighth - fourth**2) / SIZE)
    # Symmetric, as the samplers assume when they fold the labels in: the sign is a coin independent of the size.
    nonzero = x[x != 0]
    assert abs(np.mean(np.sign(nonzero))) < Z / np.sqrt(nonzero.size)
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < Z / np.sqrt(SIZE)


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        ("gaussian", stats.norm.cdf),
        ("uniform", stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)).cdf),
        ("student-t", stats.t(5, scale=np.sqrt(3 / 5)).cdf),
        ("student-t:2.5", stats.t(2.5, scale=np.sqrt(0.5 / 2.5)).cdf),
        ("student-t:30", stats.t(30, scale=np.sqrt(28 / 30)).cdf),
        ("sparse:1", stats.norm.cdf),
    ],
)
def test_distribution(law, cdf):
    assert stats.kstest(draw(law, seed=2), cdf).pvalue > P


def tail_scale(nu: float) -> float:
    """K^{-1/ν}, where P(|t| > x) ~ K x^{-ν}, from SciPy's tail."""
    return (2 * stats.t(nu).sf(1e5) * 1e5**nu) ** (-1 / nu)


@pytest.mark.parametrize("nu", [0.3, 1, 1.5, 2, 3.3])
def test_heavy_tails_have_their_tail_as_the_unit(nu):
    """Student's law, and P(|x| > 1000^{1/ν}) = 1e-3 up to terms of relative order 1000^{-2/ν}."""
    x = draw(f"heavy:{nu}", seed=5)
    scale = tail_scale(nu)
    assert stats.kstest(x, stats.t(nu, scale=scale).cdf).pvalue > P
    far = 2 * stats.t(nu, scale=scale).sf(1000 ** (1 / nu))
    assert abs(far - 1e-3) < 3e-3 * 1000 ** (-2 / nu) + 1e-12
    assert abs(np.sum(np.abs(x) > 1000 ** (1 / nu)) - far * SIZE) < Z * np.sqrt(far * SIZE)


def test_cauchy_is_heavy_tails_default():
    """P(|x| > t) ~ 1/t: Cauchy's law times π/2."""
    assert stats.kstest(draw("heavy", seed=6), stats.cauchy(scale=np.pi / 2).cdf).pvalue > P


def from_words(law: str, monkeypatch):
    """The map from random words to entries."""
    monkeypatch.setattr(module, "bulk_words", lambda words, count: words)
    return jax.jit(lambda words: parse_entries(law)(words, words.size // 2))


@pytest.mark.parametrize(
    ("law", "nu", "scale"),
    [
        ("student-t:2.1", 2.1, np.sqrt(0.1 / 2.1)),
        ("student-t:4", 4, np.sqrt(0.5)),
        ("heavy:0.7", 0.7, None),
        ("heavy:2", 2, None),
    ],
)
def test_tails_are_exact_far_out(law, nu, scale, monkeypatch):
    """P(|x| > t) of the sampler itself against SciPy's, down to 1e-12, to the resolution of 52 random bits.

    At each angle |x| falls as the radius word's uniform grows, so bisection over its 2⁵² values counts those that give
    |x| > t; the mean over the angles is the probability.
    """
    draw_ = from_words(law, monkeypatch)
    scale = tail_scale(nu) if scale is None else scale
    angles = 4000
    v = (((np.arange(angles) + 0.5) / angles) * 2.0**52).astype(np.uint64)  # uniforms k/2⁵² of the angle
    for probability in (0.3, 1e-3, 1e-6, 1e-9, 1e-12):
        t = stats.t(nu, scale=scale).isf(probability / 2)
        low, high = np.zeros(angles, np.uint64), np.full(angles, 2**52, np.uint64)
        for _ in range(53):  # |x| > t at k = low (or low = 0), not at k = high + 1
            middle = low + (high - low + 1) // 2
            words = (2**52 - np.concatenate([np.maximum(middle, 1), v])) << np.uint64(12)
            beyond = np.abs(draw_(jnp.asarray(words))) > t
            low, high = np.where(beyond, middle, low), np.where(beyond, high, np.maximum(middle, 1) - 1)
        np.testing.assert_allclose(np.mean(low) / 2.0**52, probability, rtol=max(2e-4, 2.0**-52 / probability))


@pytest.mark.parametrize(
    ("law", "dtype"),
    [
        ("heavy:0.11", "float64"),
        ("heavy:0.85", "float32"),
        ("heavy", "float32"),
        ("student-t:2.0001", "float32"),
        ("student-t", "float32"),
    ],
)
def test_the_largest_draw_can_be_squared(law, dtype, monkeypatch):
    """The extreme words give the largest |x| there is; neither it nor its square overflows."""
    low, high = 0, 2**64 - 1
    words = jnp.array([high, high, low, low, 0, high, 0, high], jnp.uint64)
    x = np.asarray(from_words(law, monkeypatch)(words)).astype(dtype)
    assert np.all(np.isfinite(x)) and np.all(np.isfinite(x**2)) and np.max(np.abs(x)) > 8


@pytest.mark.parametrize("law", ["gaussian", "rademacher", "uniform", "sparse"])
def test_complex_entries(law):
    """E|z|² = 1, Ez² = 0, the parts independent and of the law over √2."""
    z = np.asarray(jax.jit(lambda k: entries(k, (SIZE // 2,), law, jnp.complex128))(jax.random.key(7)))
    for part in (z.real, z.imag):
        assert abs(np.mean(part)) < Z * np.sqrt(0.5 / z.size)
        x = part * np.sqrt(2)
        assert abs(np.mean(x**2) - 1) <= 1e-12 + Z * np.std(x**2) / np.sqrt(z.size)
        if law == "gaussian":
            assert stats.kstest(x, "norm").pvalue > P
    for a, b in ((z.real, z.imag), (z.real**2, z.imag**2)):
        if np.std(a) > 1e-12:
            assert abs(np.corrcoef(a, b)[0, 1]) < Z / np.sqrt(z.size)


def test_rademacher_is_plus_or_minus_one():
    assert set(np.unique(draw("rademacher"))) == {-1.0, 1.0}


@pytest.mark.parametrize(("law", "q"), [("sparse:0.03", 0.03), ("sparse", 0.1)])
def test_sparse_is_a_normal_or_nothing(law, q):
    x = draw(law, seed=3)
    kept = x[x != 0]
    assert abs(kept.size - q * SIZE) < Z * np.sqrt(SIZE * q * (1 - q))
    assert stats.kstest(kept * np.sqrt(q), "norm").pvalue > P
    # Where the zeros lie says nothing about the values next to them.
    assert abs(np.corrcoef((x == 0)[1:], np.abs(x)[:-1])[0, 1]) < Z / np.sqrt(SIZE)


@pytest.mark.first(1)
@pytest.mark.parametrize("law", [*ENTRIES, *HEAVY])
def test_a_draw_belongs_to_its_key(law):
    """A batch of keys gives what each key gives, and two keys share nothing."""
    keys = jax.random.split(jax.random.key(4), 3)
    one = jax.jit(lambda k: entries(k, (40, 7), law))
    alone = np.stack([one(k) for k in keys])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys), alone, rtol=1e-13, atol=1e-15)
    nested = jax.jit(jax.vmap(jax.vmap(one)))(keys[:, None])[:, 0]
    np.testing.assert_allclose(nested, alone, rtol=1e-13, atol=1e-15)
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        # 280 entries: 5.5 standard errors of a correlation.
        assert abs(np.mean(alone[a] * alone[b])) < 5.5 * np.sqrt(np.mean(alone[a] ** 2 * alone[b] ** 2) / 280)
        assert not np.array_equal(alone[a], alone[b])


@pytest.mark.parametrize("law", [*ENTRIES, *HEAVY])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_shape_and_dtype(law, dtype):
    for shape in [(), (1,), (3, 5), (2, 0)]:
        x = jax.eval_shape(lambda k, s=shape: entries(k, s, law, jnp.dtype(dtype)), jax.random.key(0))
        assert x.shape == shape and x.dtype == dtype


@pytest.mark.parametrize(
    ("law", "part"),
    [
        ("student-t:1", "student-t:1.*ν > 2"),
        ("student-t:2", "student-t:2.*ν > 2"),
        ("student-t:inf", "finite"),
        ("student-t:nan", "ν > 2"),
        ("student-t:five", "student-t:five"),
        ("sparse:0", "0 < q ≤ 1"),
        ("sparse:1.5", "0 < q ≤ 1"),
        ("sparse:-1", "0 < q ≤ 1"),
        ("gaussian:3", "gaussian has no parameter"),
        ("rademacher:1", "no parameter"),
        ("uniform:x", "no parameter"),
        ("gausian", "did you mean 'gaussian'"),
        ("studentt", "did you mean 'student-t'"),
        ("sparce:0.1", "did you mean 'sparse'"),
        ("", "unknown"),
        ("Cauchy", "known: gaussian, heavy, rademacher, sparse, student-t, uniform"),
        ("heavy:0", "heavy:0.*ν ≥ 0.11"),
        ("heavy:-1", "ν ≥ 0.11"),
        ("heavy:0.1", "ν ≥ 0.11"),
        ("heavy:inf", "finite"),
        ("heavy:nan", "ν ≥ 0.11"),
        ("heavy:tail", "heavy:tail"),
        ("heavi:1", "did you mean 'heavy'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(law, part):
    with pytest.raises(InputError, match=part) as caught:
        parse_entries(law)
    assert "entries" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_draws_that_single_precision_cannot_hold_are_refused(dtype):
    with pytest.raises(InputError, match=r"heavy:0\.5.*must have ν ≥ 0.85 in float32"):
        entries(jax.random.key(0), (3,), "heavy:0.5", dtype)


@pytest.mark.parametrize("dtype", [jnp.int32, "uint8", bool, jnp.bfloat16, "float", None, "f8", "fluot32", 3])
def test_dtypes(dtype):
    """Anything that NumPy takes for one of the four; the rest is refused."""
    if dtype in ("float", "f8") or dtype is None:
        assert entries(jax.random.key(0), (3,), dtype=dtype).dtype == np.float64
        return
    with pytest.raises(InputError, match=r"^dtype = .*: must be float32 or float64 or complex64 or complex128$"):
        entries(jax.random.key(0), (3,), dtype=dtype)


def test_checks_of_sizes_and_scales():
    assert whole("n", np.int64(3)) == 3 and isinstance(whole("n", np.int64(3)), int)
    for value in (0, -1, 2.0, 2.5, True, "3", None, np.nan):
        with pytest.raises(InputError, match=r"^n = .*: must be a whole number ≥ 1"):
            whole("n", value)
    with pytest.raises(InputError, match=r"^k = 5: must be a whole number from 1 to 4$"):
        whole("k", 5, 1, 4)
    assert positive("s", 2) == 2 and positive("s", jnp.float32(0.5)).dtype == jnp.float64
    for value in (0, -1.0, np.nan, np.inf, "x", None, np.ones(2)):
        with pytest.raises(InputError, match=r"^s = .*: must be a finite number > 0$"):
            positive("s", value)
    assert positive("s", 0, zero=True) == 0
    # A traced value is not known and passes.
    assert jax.jit(lambda s: positive("s", s))(-1.0) == -1
    assert floating("complex64", "c") == np.complex64
