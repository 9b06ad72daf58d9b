"""Quantised weights, recognised by the names and types of their tensors; none is read as numbers.

A quantised matrix is several tensors of one module: packed integers and the tables that turn them back (scales, zero points,
codebooks). Neither are weights: integers are not, and a table of scales that is shaped like a matrix is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["quantized_tensors"]

_PACKED = re.compile(r"I(8|16|32|64)|U(8|16|32|64)|F4(_\w+)?|F6_\w+|F8_\w+")
_TABLES = (
    "SCB", "weight_format", "absmax", "quant_map", "nested_absmax", "nested_quant_map", "scales", "scale", "qzeros", "zeros",
    "biases", "g_idx", "perm", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point", "weight_shape",
    "weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale", "output_scale",
    "activation_scale", "scale_weight", "smooth_scale",
    "scales_and_zeros", "k_scale", "v_scale", "q_scale", "weight_packed", "qweight", "weight_offset",
)  # fmt: skip
_INSIDE = re.compile(r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$")
"""bitsandbytes in four bits: tables under the name of the weight."""
_EXPERTS = re.compile(r"_(blocks|scales|scale|scale_inv|weight_scale|weight_scale_2|weight_packed)$")
"""Tables of tensors of experts, named after the tensor: `gate_up_proj_blocks`, `gate_up_proj_scale_inv`."""


_BUFFER = re.compile(
    r"\w*_ids?|\w*index\w*|\w*_idx|\w+_indices|(masked_)?bias|\w*mask\w*|\w*count\w*|\w*num_\w+|\w*step\w*|\w*version|\w*length\w*"
)
"""Last names of integers that models keep beside their weights, such as the causal mask `attention.bias` of GPT-NeoX. Integers
of any other name are taken for packed weights of some format."""


def _module(name: str) -> str:
    """Return the name that all tensors of one quantised weight share."""
    if match := _INSIDE.search(name):
        return name[: match.start()]
    stem, _, last = name.rpartition(".")
    if last in (*_TABLES, "weight"):
        return stem
    return _EXPERTS.sub("", name)


def _part(module: str, name: str) -> str:
    return name[len(module) :].lstrip("._")


def _method(parts: Mapping[str, str]) -> str:
    """Return the quantisation method of a weight, by the last names and the types of its tensors."""
    names = set(parts)
    types = sorted({kind for kind in parts.values() if _PACKED.fullmatch(kind)})
    if any("absmax" in name or "quant_state.bitsandbytes" in name for name in names):
        method = "to four bits by bitsandbytes"
    elif "SCB" in names:
        method = "to 8-bit integers by bitsandbytes"
    elif "blocks" in names:
        method = "to MXFP4"
    elif "qweight" in names and names & {"qzeros", "g_idx"}:
        method = "by GPTQ or AWQ"
    elif "weight_packed" in names:
        method = "by compressed-tensors"
    elif "biases" in names:
        method = "by MLX"
    elif types[0].startswith("F8"):
        method = f"to 8-bit floating point ({types[0]})" + (" without its scales" if len(parts) == 1 else "")
    elif len(parts) == 1 and types[0][0] in "IU":
        return f"of integers ({types[0]}), which are not weights"
    else:
        method = f"to packed numbers of type {types[0]}"
    return f"quantised {method}, which is not supported; give the checkpoint in 16 or 32 bits"


def quantized_tensors(kinds_of: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tensors that are part of a quantised weight, and the modules that these belong to.

    Args:
        kinds_of: name → type as safetensors names it.

    Returns:
        Name of a tensor → its kind, worded to follow "is", and name of a module → the kind of its weight. Plain weights
        are in neither, nor is what is not named like a part of a quantised weight, such as the integers `position_ids`.
    """
    modules: dict[str, dict[str, str]] = {}
    for name, kind in kinds_of.items():
        modules.setdefault(_module(name), {})[name] = kind
    tensors, weights_of = {}, {}
    members: dict[str, list[str]] = {}
    for name in kinds_of:
        parts = name.split(".")
        for i in (1, 2):  # one component below the module, or two, as in weight._data
            members.setdefault(".".join(parts[:-i]), []).append(name)
    for module, kinds in modules.items():
        parts = {_part(module, name): kind for name, kind in kinds.items()}
        packed = [part for part, kind in parts.items() if _PACKED.fullmatch(kind)]
        weights = ("weight", "qweight", "weight_packed", "blocks") + ("",) * (len(parts) > 1)
        if not any(part in weights for part in packed):
            continue
        method = weights_of[module] = _method(parts)
        for name in kinds:
            part = _part(module, name)
            if part in packed:
                tensors[name] = method
            elif part != "bias":
                tensors[name] = f"a table of {module}, which is {method}"
    for name, kind in kinds_of.items():
        module, _, last = name.rpartition(".")
        if name in tensors or not _PACKED.fullmatch(kind) or _BUFFER.fullmatch(last) or not module:
            continue
        # A format that is not known by name, such as HQQ's W_q, quanto's weight._data or AQLM's codes: all of the module's
        # own tensors are part of it.
        module = module.removesuffix(".weight")
        method = f"quantised in an unknown format ({last} of type {kind}); give the checkpoint in 16 or 32 bits"
        weights_of.setdefault(module, method)
        tensors[name] = method
        for member in members.get(module, []):
            below = member[len(module) + 1 :]
            if member not in tensors and re.fullmatch(
                r"(weight[.:])?(?!weight$|bias$)[^.]+|\w*centroids\.weight", below
            ):
                tensors[member] = f"a table of {module}, which is {method}"
    return tensors, weights_of
