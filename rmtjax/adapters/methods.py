r"""The updates: what each method adds to a frozen weight.

A Hugging Face weight W is (outputs, inputs); a kernel of Flax is its transpose. All updates here but DoRA's are low-rank:
the kernel becomes K + A B with A (inputs, k) and B (k, outputs), so ΔW = Bᵀ Aᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rmtjax._errors import InputError, shown, unknown
from rmtjax._random import fixed_normal
from rmtjax.adapters.params import AdapterConstant, AdapterParam, OrthogonalParam

__all__ = [
    "METHODS",
    "Dense",
    "DoRA",
    "LoRA",
    "OrthogonalLoRA",
    "SpectralAdditive",
    "SpectralRotational",
    "Update",
    "update",
]


@jax.custom_vjp
def _low_rank_linear(x, kernel, alpha, a, b):
    """X (K diag(α) + A B), the sum formed first: it is small beside the product with X. α may be None."""
    return x @ (scaled_by(kernel, alpha) + a @ b)


def scaled_by(kernel, alpha):
    # In half precision most of α's steps from 1 would be rounded away, and a weakly typed α would not raise it.
    return kernel if alpha is None else kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)) * alpha


def _low_rank_forward(x, kernel, alpha, a, b):
    of_alpha = alpha is not None and alpha.perturbed
    x, kernel, alpha, a, b = jax.tree.map(lambda p: p.value, (x, kernel, alpha, a, b))
    if not of_alpha:
        return _low_rank_linear(x, kernel, alpha, a, b), (x, kernel, alpha, a, b, None)
    # α's gradient is a sum of X K times what comes back: with that kept, it needs no product of its own.
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
    # Where nothing but A and B trains, the compiler leaves out the product with the kernel's own gradient.
    return to_x, scaled_by(flat.T @ rows, alpha), to_alpha, flat.T @ (rows @ b.T), (flat @ a).T @ rows


_low_rank_linear.defvjp(_low_rank_forward, _low_rank_backward, symbolic_zeros=True)


def _norm(a: Float[Array, "inputs k"], b: Float[Array, "k outputs"]) -> Float[Array, ""]:
    """The largest singular value of A B."""
    right_a, right_b = jnp.linalg.qr(a, mode="r"), jnp.linalg.qr(b.T, mode="r")
    return jnp.linalg.norm(right_a @ right_b.T, 2)


def _exponents(x: Float[Array, "inputs outputs"]) -> Float[Array, " outputs"]:
    """A power of two near the largest entry of each column, 1 for a column of zeros; no derivative passes through it."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=0))
    power = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1)
    return jnp.where((largest > 0) & jnp.isfinite(largest), power, 1)


def column_norms(x: Float[Array, "inputs outputs"]) -> tuple[Float[Array, " outputs"], Float[Array, " outputs"]]:
    """The norms of columns as (power of two, norm over that power), whose squares neither vanish nor overflow.

    Scaling by a power of two is exact. The second factor is 0 for a column of zeros, and its derivative is 0 there.
    """
    power = _exponents(x)
    scaled = x / power
    squares = jnp.sum(scaled * scaled, axis=0)
    is_zero = squares == 0
    return power, jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


class Update(nnx.Module):
    """What is added to a frozen kernel K (inputs, outputs), whose columns α may scale."""

    rank: int
    shrinks: tuple[str, ...] = ()
    """What `bounded` scales down; with all of it 0 nothing is added."""
    sides: Mapping[str, tuple[str | None, ...]] = {}
    """Which axis of each variable is one of the kernel's: "inputs", "outputs" or None."""

    def factors(self) -> tuple[Float[Array, "inputs k"], Float[Array, "k outputs"]]:
        """A and B of the new kernel K + A B."""
        raise NotImplementedError

    def kernel(self, kernel: Float[Array, "inputs outputs"]) -> Float[Array, "inputs outputs"]:
        """The new kernel, α already applied to the old one."""
        a, b = self.factors()
        return kernel + a @ b

    def rates(self, kernel: Float[Array, "inputs outputs"]) -> Float[Array, " outputs"] | None:
        """What the columns of kernel + A B are multiplied by, α already applied to the kernel; None leaves them alone."""
        return None

    def norm(self) -> Float[Array, ""]:
        """The largest singular value of what is added, before a DoRA rescales it."""
        return _norm(*self.factors())

    def bounded(self, limit: float) -> dict[str, Array]:
        """Values of parameters at which `norm` is at most `limit`: the ones that there are, where they fulfil it."""
        own = {name: getattr(self, name)[...] for name in self.shrinks}

        def scaled(share):
            other = nnx.clone(self)
            for name, value in own.items():
                setattr(other, name, type(getattr(self, name))(share * value))
            return other

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            inside = scaled(middle).norm() <= limit
            return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

        share = jax.lax.cond(self.norm() <= limit, lambda: 1.0, lambda: jax.lax.fori_loop(0, 20, halve, (0.0, 1.0))[0])
        return {name: share * value for name, value in own.items()}

    def __call__(
        self,
        x: Float[Array, "*batch inputs"],
        kernel: Float[Array, "inputs outputs"],
        alpha: Float[Array, " outputs"] | None = None,
    ) -> Float[Array, "*batch outputs"]:
        """`x @ self.kernel(kernel * alpha)`, computed in the dtype of x."""
        a, b = (f.astype(x.dtype) for f in self.factors())
        if x.dtype == jnp.float32:
            return _low_rank_linear(x, kernel.astype(x.dtype), alpha, a, b)
        # In half precision a sum of kernels would round the update away.
        return x @ scaled_by(kernel, alpha).astype(x.dtype) + (x @ a) @ b


class LoRA(Update):
    """W + s B A (Hu et al. 2022), s = a/r; or s = a/√r, rank-stabilised (Kalajdzievski 2023).

    A starts uniform on ±1/√inputs and B at zero, as in PEFT.
    """

    sides: Mapping[str, tuple[str | None, ...]] = {"A": ("inputs", None), "B": (None, "outputs")}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array, stabilised: bool = False) -> None:
        inputs, outputs = kernel.shape
        bound = 1 / math.sqrt(inputs)
        self.A = AdapterParam(jax.random.uniform(key, (inputs, rank), jnp.float32, -bound, bound))
        self.B = AdapterParam(jnp.zeros((rank, outputs), jnp.float32))
        self.rank, self.scale, self.stabilised = rank, scale, stabilised

    @property
    def strength(self) -> float:
        """The factor s."""
        return self.scale / (math.sqrt(self.rank) if self.stabilised else self.rank)

    def factors(self):
        return self.A[...], self.strength * self.B[...]

    def bounded(self, limit):
        # Only the singular values that are too large are cut, which is the nearest matrix there is.
        a, b = self.A[...], self.B[...]
        right_a, (left_b, right_b) = jnp.linalg.qr(a, mode="r"), jnp.linalg.qr(b.T)
        u, values, vh = jnp.linalg.svd(right_a @ right_b.T)
        if self.strength == 0:
            return {"B": b}
        limit = limit / abs(self.strength)
        too_much = (u * jnp.maximum(values - limit, 0)) @ vh
        b = b - jnp.linalg.pinv(right_a, rtol=1e-6) @ too_much @ left_b.T
        # What A all but loses of B cannot be taken from there to the last digit.
        return {"B": b * jnp.minimum(1.0, limit / jnp.maximum(_norm(a, b), 1e-30))}


class DoRA(LoRA):
    """m (W + s B A)/‖W + s B A‖ by rows (Liu et al. 2024); the norm counts as a constant for the gradient of A and B.

    The magnitudes m start at the norms of W's rows. For α, which scales W inside the norm, the norm is no constant: where B A
    = 0 nothing depends on α, and beside B A it is W's share in the direction of the row.

    A row of W + s B A that is zero has no direction. It stays zero, its m/‖·‖ counts as 1 and its m gets no gradient, so
    that A and B learn as LoRA's do until the row has a direction; that is what ever smaller rows tend to at the start.
    PEFT divides by zero there.
    """

    sides: Mapping[str, tuple[str | None, ...]] = {**LoRA.sides, "magnitude": ("outputs",)}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array, stabilised: bool = False) -> None:
        super().__init__(kernel, rank, scale, key, stabilised)
        power, norms = column_norms(kernel.astype(jnp.float32))
        self.magnitude = AdapterParam(power * norms)

    def rates(self, kernel):
        a, b = jax.lax.stop_gradient(self.factors())
        power, norms = column_norms(kernel.astype(jnp.float32) + a @ b)
        is_zero = norms == 0
        return jnp.where(is_zero, 1, self.magnitude[...] / power / jnp.where(is_zero, 1, norms))

    def kernel(self, kernel):
        return super().kernel(kernel) * self.rates(kernel)

    def __call__(self, x, kernel, alpha=None):
        return super().__call__(x, kernel, alpha) * self.rates(scaled_by(kernel, alpha)).astype(x.dtype)


class OrthogonalLoRA(Update):
    """W + (a/r) B A with BᵀB = A Aᵀ = I (Intruder Dimensions, §V-B): all r singular values of the update are a/r.

    Both start uniform over such matrices, so the update is there from the start. `stiefel` keeps the constraint.
    """

    sides: Mapping[str, tuple[str | None, ...]] = {"A": ("inputs", None), "B": ("outputs", None)}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array) -> None:
        inputs, outputs = kernel.shape

        def frame(key, n):
            return jnp.linalg.qr(jax.random.normal(key, (n, rank), jnp.float32))[0]

        for_a, for_b = jax.random.split(key)
        self.A = OrthogonalParam(frame(for_a, inputs))
        self.B = OrthogonalParam(frame(for_b, outputs))
        self.rank, self.scale = rank, scale

    def factors(self):
        return self.A[...], (self.scale / self.rank) * self.B[...].T


def _whole(x: Array) -> Array:
    """An array with its axes no longer split over a mesh, as decompositions ask for."""
    sharding = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec()))
    return x


class _Spectral(Update):
    """An update of the top r singular values and vectors U₁ S₁ V₁ᵀ of W (Zhang & Pilanci 2024)."""

    sides: Mapping[str, tuple[str | None, ...]] = {"U": ("outputs", None), "V": ("inputs", None)}

    def __init__(self, kernel: Array, rank: int) -> None:
        # The kernel is Wᵀ, so its left singular vectors are W's right ones.
        v, s, u = jnp.linalg.svd(_whole(kernel.astype(jnp.float32)), full_matrices=False)
        self.U, self.S, self.V = (AdapterConstant(x) for x in (u[:rank].T, s[:rank], v[:, :rank]))
        self.rank = rank


class SpectralAdditive(_Spectral):
    """[U₁ + A_U, U₂] S [V₁ + A_V, V₂]ᵀ: the top singular vectors are moved freely; both moves start at zero."""

    shrinks = ("AU", "AV")
    sides: Mapping[str, tuple[str | None, ...]] = {**_Spectral.sides, "AU": ("outputs", None), "AV": ("inputs", None)}

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array) -> None:
        super().__init__(kernel, rank)
        self.AU = AdapterParam(jnp.zeros(self.U.shape, jnp.float32))
        self.AV = AdapterParam(jnp.zeros(self.V.shape, jnp.float32))

    def factors(self):
        s, moved = self.S[...], self.U[...] + self.AU[...]
        a = jnp.concatenate([self.V[...] * s, self.AV[...] * s], axis=1)
        return a, jnp.concatenate([self.AU[...].T, moved.T])


def cayley(entries: Float[Array, " k"], rank: int) -> Float[Array, "rank rank"]:
    """The rotation (I − Q)(I + Q)⁻¹ of a skew Q, given by its r(r−1)/2 entries below the diagonal."""
    below = jnp.zeros((rank, rank), entries.dtype).at[jnp.tril_indices(rank, -1)].set(entries)
    skew, eye = below - below.T, jnp.eye(rank, dtype=entries.dtype)
    return jnp.linalg.solve(eye + skew, eye - skew)


class SpectralRotational(_Spectral):
    """[U₁ R_U, U₂] S [V₁ R_V, V₂]ᵀ with rotations R (Cayley), which start at the identity: no singular value changes."""

    shrinks = ("QU", "QV")

    def __init__(self, kernel: Array, rank: int, scale: float, key: Array) -> None:
        super().__init__(kernel, rank)
        self.QU = AdapterParam(jnp.zeros(rank * (rank - 1) // 2, jnp.float32))
        self.QV = AdapterParam(jnp.zeros(rank * (rank - 1) // 2, jnp.float32))

    def factors(self):
        u, v = cayley(self.QU[...], self.rank), cayley(self.QV[...], self.rank)
        core = (v * self.S[...]) @ u.T - jnp.diag(self.S[...])
        return self.V[...] @ core, self.U[...].T


class Dense(Update):
    """W + Δ with all of Δ trained, from zero: full fine-tuning of one weight beside its frozen self."""

    sides: Mapping[str, tuple[str | None, ...]] = {"delta": ("inputs", "outputs")}

    def __init__(self, kernel: Array) -> None:
        self.delta = AdapterParam(jnp.zeros(kernel.shape, jnp.float32))
        self.rank = min(kernel.shape)

    def norm(self):
        # Subspace iteration from a fixed block: from below, by some per mille where singular values are close.
        delta = self.delta[...]
        block = fixed_normal(0, (delta.shape[1], 8), delta.dtype)
        for _ in range(4):
            block = jnp.linalg.qr(delta.T @ (delta @ block))[0]
        return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh((delta @ block).T @ (delta @ block))[-1], 0))

    def bounded(self, limit):
        return {"delta": self.delta[...] * jnp.minimum(1.0, limit / jnp.maximum(self.norm(), 1e-30))}

    def kernel(self, kernel):
        # The sum is one of single precision: in that of a half-precision kernel, small Δ would be rounded away.
        return kernel + self.delta[...]

    def __call__(self, x, kernel, alpha=None):
        return x @ self.kernel(scaled_by(kernel, alpha)).astype(x.dtype)


METHODS: dict[str, Callable[..., Update]] = {
    "lora": LoRA,
    "rslora": lambda *args: LoRA(*args, stabilised=True),
    "dora": DoRA,
    "orthogonal": OrthogonalLoRA,
    "spectral-additive": SpectralAdditive,
    "spectral-rotational": SpectralRotational,
}
"""Name of a method → its update of a kernel, given (kernel, rank, scale a, key)."""


def update(
    method: str, kernel: Float[Array, "inputs outputs"], rank: int, scale: float, key: Array, where: str
) -> Update:
    """The update of one kernel, which `where` names in errors.

    Raises:
        InputError: if the rank is not between 1 and the smaller side of the kernel.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise InputError(f"rank = {shown(rank)}: must be a whole number")
    if not math.isfinite(scale):
        raise InputError(f"scale = {scale}: must be finite")
    if not 1 <= rank <= min(kernel.shape):
        raise InputError(f"rank = {rank}: must be 1 to {min(kernel.shape)}, the smaller side of {where}")
    if method == "spectral-rotational" and rank == 1:
        raise InputError("rank = 1: spectral-rotational needs 2 or more, one vector has nothing to be rotated with")
    return METHODS[method](kernel, rank, scale, key)
