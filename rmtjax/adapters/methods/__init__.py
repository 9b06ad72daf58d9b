"""Adapter methods: the updates that they add to a frozen weight.

A Hugging Face weight W is (outputs, inputs); a kernel of Flax is its transpose. All updates here but DoRA's are low-rank:
the kernel becomes K + A B with A (inputs, k) and B (k, outputs), so ΔW = Bᵀ Aᵀ.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Float

from rmtjax._checks import number, one_of, whole
from rmtjax._errors import InputError
from rmtjax.adapters.methods.base import Update
from rmtjax.adapters.methods.dora import DoRA
from rmtjax.adapters.methods.full import FullUpdate
from rmtjax.adapters.methods.lora import LoRA
from rmtjax.adapters.methods.orthogonal import OrthogonalLoRA
from rmtjax.adapters.methods.spectral import SpectralAdditive, SpectralRotational

__all__ = [
    "METHODS",
    "DoRA",
    "FullUpdate",
    "LoRA",
    "OrthogonalLoRA",
    "SpectralAdditive",
    "SpectralRotational",
    "Update",
    "make_update",
]

METHODS: dict[str, Callable[..., Update]] = {
    "lora": LoRA,
    "rslora": lambda *args: LoRA(*args, stabilised=True),
    "dora": DoRA,
    "orthogonal": OrthogonalLoRA,
    "spectral-additive": SpectralAdditive,
    "spectral-rotational": SpectralRotational,
}
"""Name of a method → its update of a kernel, given (kernel, rank, scale a, key)."""


def make_update(
    adapter: str, kernel: Float[Array, "inputs outputs"], rank: int, scale: float, key: Array, where: str
) -> Update:
    """Return the update of one kernel, which `where` names in errors.

    Raises:
        InputError: if the rank is not between 1 and the smaller side of the kernel.
    """
    one_of("adapter", adapter, METHODS)
    rank = whole("rank", rank)
    number("lora_alpha", scale)
    if rank > min(kernel.shape):
        raise InputError(f"rank = {rank}: must be 1 to {min(kernel.shape)}, the smaller side of {where}")
    if adapter == "spectral-rotational" and rank == 1:
        raise InputError("rank = 1: must be at least 2 for spectral-rotational, which rotates vectors into one another")
    return METHODS[adapter](kernel, rank, scale, key)
