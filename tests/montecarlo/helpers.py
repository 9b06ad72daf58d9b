"""Claims that are cheap to draw and have a certain law."""

import jax
import jax.numpy as jnp

from rmtjax.montecarlo import Claim, Sampler, positive, real, size


def mean_draw(key, n, shift):
    """Draw the mean of n normals about `shift` from its law."""
    return shift + jax.random.normal(key) / jnp.sqrt(n)


MEAN = Claim(
    name="mean",
    equation=r"E\bar x = \mu",
    source="any textbook",
    params=dict(n=size("sample size"), shift=real("mean")),
    law=lambda n, shift: shift + 0 * n,
    samplers=dict(direct=mean_draw),
    grid=dict(n=[1, 4, 16], shift=[0.0, 1.0]),
)


def two_draw(key, n, x):
    """Draw two outputs, evaluated at all x from one draw."""
    z = jax.random.normal(key) / jnp.sqrt(n)
    return {"cosine": jnp.cos(x * z), "sine": jnp.sin(x * z)}


TWO = Claim(
    name="characteristic-function",
    equation=r"E e^{ixz} = e^{-x^2/2n}",
    source="any textbook",
    params=dict(n=positive(), x=real()),
    law=lambda n, x: {"cosine": jnp.exp(-(x**2) / (2 * n)), "sine": 0 * x * n},
    samplers=dict(direct=two_draw),
    grid=dict(n=[1.0, 2.0], x=[0.0, 0.5, 1.0, 2.0]),
    within=("x",),
)


def dense_draw(key, n, shift):
    """Draw n normals about `shift` and return their mean."""
    return shift + jnp.mean(jax.random.normal(key, (n,)))


BOTH = Claim(
    name="mean-both",
    equation=r"E\bar x = \mu",
    source="any textbook",
    params=MEAN.params,
    law=MEAN.law,
    samplers=dict(direct=mean_draw, dense=Sampler(dense_draw, static_argnames=("n",), block=256, default_trials=2000)),
    grid=MEAN.grid,
    comparison_grid=MEAN.grid,
)
