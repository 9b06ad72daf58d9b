"""The base class of all updates: the new kernel, its norm, and a product whose derivatives cost the least."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["Update", "norm_of_product", "scaled_by"]


@jax.custom_vjp
def _low_rank_linear(x, kernel, alpha, a, b):
    """Return X (K diag(α) + A B) with the sum formed first, which is cheap beside the product with X. α may be None."""
    return x @ (scaled_by(kernel, alpha) + a @ b)


def scaled_by(kernel: Array, alpha: Array | None) -> Array:
    """Return a kernel with its columns scaled by α, in single precision or more; None leaves it unchanged."""
    # In half precision most of α's steps from 1 would be rounded away, and a weakly typed α would not raise the precision.
    return kernel if alpha is None else kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)) * alpha


def _low_rank_forward(x, kernel, alpha, a, b):
    of_alpha = alpha is not None and alpha.perturbed
    x, kernel, alpha, a, b = jax.tree.map(lambda p: p.value, (x, kernel, alpha, a, b))
    if not of_alpha:
        return _low_rank_linear(x, kernel, alpha, a, b), (x, kernel, alpha, a, b, None)
    # α's gradient is a sum of X K times the incoming gradient: with X K kept, it needs no product of its own.
    base = x @ kernel
    return base * alpha + (x @ a) @ b, (x, kernel, alpha, a, b, base)


def _low_rank_backward(saved, gradient):
    x, kernel, alpha, a, b, base = saved
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)
    rows, flat = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    to_x = (rows @ (scaled_by(kernel, alpha) + a @ b).T).reshape(x.shape)
    to_alpha = None
    if alpha is not None:
        to_alpha = jnp.zeros_like(alpha) if base is None else (rows * base.reshape(rows.shape)).sum(0)
    # If nothing but A and B trains, the compiler drops the product for the kernel's own gradient.
    return to_x, scaled_by(flat.T @ rows, alpha), to_alpha, flat.T @ (rows @ b.T), (flat @ a).T @ rows


_low_rank_linear.defvjp(_low_rank_forward, _low_rank_backward, symbolic_zeros=True)


def norm_of_product(a: Float[Array, "inputs k"], b: Float[Array, "k outputs"]) -> Float[Array, ""]:
    """Return the largest singular value of A B."""
    right_a, right_b = jnp.linalg.qr(a, mode="r"), jnp.linalg.qr(b.T, mode="r")
    return jnp.linalg.norm(right_a @ right_b.T, 2)


class Update(nnx.Module):
    """An update that is added to a frozen kernel K (inputs, outputs), whose columns α may scale."""

    rank: int
    shrinks: tuple[str, ...] = ()
    """Names of the variables that `bounded` scales down; with all of them 0 the update is 0."""
    sides: Mapping[str, tuple[str | None, ...]] = {}
    """The kernel's axis that an axis of each variable runs along: "inputs", "outputs" or None."""

    def factors(self) -> tuple[Float[Array, "inputs k"], Float[Array, "k outputs"]]:
        """Return A and B of the new kernel K + A B."""
        raise NotImplementedError

    def kernel(self, kernel: Float[Array, "inputs outputs"]) -> Float[Array, "inputs outputs"]:
        """Return the new kernel, α already applied to the old one."""
        a, b = self.factors()
        return kernel + a @ b

    def rates(self, kernel: Float[Array, "inputs outputs"]) -> Float[Array, " outputs"] | None:
        """Return the factors of the columns of kernel + A B, α already applied to the kernel; None leaves them unchanged."""
        return None

    def norm(self) -> Float[Array, ""]:
        """Return the largest singular value of the update, before a DoRA rescales it."""
        return norm_of_product(*self.factors())

    def bounded(self, limit: float) -> dict[str, Array]:
        """Return values of parameters at which `norm` is at most `limit`: the present ones, if they already satisfy it."""
        values = {name: getattr(self, name)[...] for name in self.shrinks}

        def scaled(share):
            copy = nnx.clone(self)
            for name, value in values.items():
                setattr(copy, name, type(getattr(self, name))(share * value))
            return copy

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            inside = scaled(middle).norm() <= limit
            return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

        share = jax.lax.cond(self.norm() <= limit, lambda: 1.0, lambda: jax.lax.fori_loop(0, 20, halve, (0.0, 1.0))[0])
        return {name: share * value for name, value in values.items()}

    def __call__(
        self,
        x: Float[Array, "*batch inputs"],
        kernel: Float[Array, "inputs outputs"],
        alpha: Float[Array, " outputs"] | None = None,
    ) -> Float[Array, "*batch outputs"]:
        """Return `x @ self.kernel(kernel * alpha)`, computed in the dtype of x."""
        a, b = (f.astype(x.dtype) for f in self.factors())
        if x.dtype == jnp.float32:
            return _low_rank_linear(x, kernel.astype(x.dtype), alpha, a, b)
        # In half precision a sum of kernels would round the update away.
        return x @ scaled_by(kernel, alpha).astype(x.dtype) + (x @ a) @ b
