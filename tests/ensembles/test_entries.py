"""Entries of dense matrices: the law that the name says, mean 0 and variance 1, one draw a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmtjax._errors import InputError
from rmtjax.ensembles.entries import ENTRIES, entries, parse_entries

# False alarms: KS at p < 1e-5, moments at 4.5 standard errors (7e-6), forty checks: 3e-4 for the file. Seeds are fixed.
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


@pytest.mark.parametrize("law", ENTRIES)
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


@pytest.mark.parametrize("law", ENTRIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
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
        ("Cauchy", "known: gaussian, rademacher, sparse, student-t, uniform"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(law, part):
    with pytest.raises(InputError, match=part) as caught:
        parse_entries(law)
    assert "entries" in str(caught.value) and "\n" not in str(caught.value)
