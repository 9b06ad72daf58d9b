import jax
import jax.numpy as jnp

from rmtjax import Claim, Sampler, size


def moment(key, N):
    A = jax.random.normal(key, (N, N))
    W = (A + A.T) / jnp.sqrt(2 * N)
    return jnp.sum((W @ W) ** 2) / N


fourth = Claim(
    name="goe-fourth-moment",
    equation=r"E \frac{1}{N} tr W^4 = 2 + 5/N + 5/N^2",
    source="Wigner's moments, exact for the GOE",
    params=dict(N=size("dimension")),
    law=lambda N: 2 + 5 / N + 5 / N**2,
    samplers=dict(dense=Sampler(moment, static_argnames=("N",))),
    grid=dict(N=[2, 10, 50]),
)
