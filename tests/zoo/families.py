"""Tiny models of many families of transformers, and adapters of PEFT on them, as their own libraries write them."""

from __future__ import annotations

import dataclasses
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_ENCODER = {k: v for k, v in _TEXT.items() if k not in ("num_key_value_heads", "head_dim")}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family: type of its config, class of the model, what makes it small, what `all-linear` cannot name, and which of its
    weights are kept as (inputs, outputs).
    """

    kind: str
    model: str
    config: dict[str, Any]
    targets: str | tuple[str, ...] = "all-linear"
    turned: str = r"\A\Z"


def _parts(kind: str, text: str | None = None, vision: str | None = None, **values: Any) -> dict[str, Any]:
    parts = dict(values)
    if text is not None:
        parts["text_config"] = {**_TEXT, "model_type": text, **values.get("text_config", {})}
    if vision is not None:
        parts["vision_config"] = {**_VISION, "model_type": vision, **values.get("vision_config", {})}
    return parts


_ENCODER_DECODER = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
_GPT2 = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
_SWIN_BACKBONE = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_QWEN_VISION = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 4,
    "spatial_merge_size": 1,
    "in_channels": 3,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}

FAMILIES = (
    *(
        Family(kind, "AutoModelForCausalLM", _TEXT)
        for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
    ),
    Family(
        "gpt2",
        "AutoModelForCausalLM",
        _GPT2,
        turned=r"\.c_(attn|proj|fc)\.weight",
    ),
    *(Family(kind, "AutoModelForCausalLM", _ENCODER) for kind in ("gpt_neox", "opt", "bloom", "falcon")),
    Family("mamba", "AutoModelForCausalLM", _ENCODER, targets=("in_proj", "x_proj")),
    *(
        Family(kind, "AutoModelForSequenceClassification", _ENCODER)
        for kind in ("bert", "roberta", "electra", "deberta-v2", "modernbert")
    ),
    Family(
        "distilbert",
        "AutoModelForSequenceClassification",
        {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    Family(
        "t5",
        "AutoModelForSeq2SeqLM",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    Family("bart", "AutoModelForSeq2SeqLM", {**_ENCODER_DECODER, "max_position_embeddings": 64}),
    Family("mixtral", "AutoModelForCausalLM", {**_TEXT, "num_local_experts": 3, "num_experts_per_tok": 2}),
    Family(
        "qwen3_moe",
        "AutoModelForCausalLM",
        {**_TEXT, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    Family(
        "deepseek_v3",
        "AutoModelForCausalLM",
        {
            **_ENCODER,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_shared_experts": 1,
        },
    ),
    Family(
        "gpt_oss",
        "AutoModelForCausalLM",
        {**_TEXT, "num_local_experts": 3, "num_experts_per_tok": 2},
        turned=r"experts\.\w+_proj",
    ),
    Family(
        "llama4_text",
        "AutoModelForCausalLM",
        {**_TEXT, "num_local_experts": 3, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
        turned=r"experts\.\w+_proj",
    ),
    Family(
        "granitemoe",
        "AutoModelForCausalLM",
        {**_ENCODER, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    Family("olmoe", "AutoModelForCausalLM", {**_TEXT, "num_experts": 3, "num_experts_per_tok": 2}),
    Family(
        "gemma3",
        "AutoModelForImageTextToText",
        _parts("gemma3", "gemma3_text", "siglip_vision_model", mm_tokens_per_image=4),
    ),
    Family("llava", "AutoModelForImageTextToText", _parts("llava", "llama", "clip_vision_model")),
    Family(
        "paligemma",
        "AutoModelForImageTextToText",
        _parts("paligemma", "gemma", "siglip_vision_model", projection_dim=32),
    ),
    Family(
        "qwen2_vl", "AutoModelForImageTextToText", {"text_config": {**_TEXT, **_MROPE}, "vision_config": _QWEN_VISION}
    ),
    Family(
        "qwen2_5_vl",
        "AutoModelForImageTextToText",
        {
            "text_config": {**_TEXT, **_MROPE},
            "vision_config": {
                **_QWEN_VISION,
                "intermediate_size": 48,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
        },
    ),
    Family(
        "mistral3",
        "AutoModelForImageTextToText",
        _parts("mistral3", "mistral", "pixtral", vision_config={"head_dim": 8}),
    ),
    Family(
        "internvl",
        "AutoModelForImageTextToText",
        _parts("internvl", "qwen2", "internvl_vision", vision_config={"image_size": [16, 16], "patch_size": [8, 8]}),
    ),
    Family("vit", "AutoModelForImageClassification", _VISION),
    Family("dinov2", "AutoModelForImageClassification", {**_VISION, "mlp_ratio": 2}),
    Family(
        "swin",
        "AutoModelForImageClassification",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    Family("clip", "AutoModel", {"text_config": _ENCODER, "vision_config": _VISION, "projection_dim": 16}),
    Family("clip_vision_model", "AutoModel", _VISION),
    Family("siglip", "AutoModel", {"text_config": _ENCODER, "vision_config": _VISION}),
    Family(
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        {
            **_ENCODER_DECODER,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    Family(
        "audio-spectrogram-transformer",
        "AutoModelForAudioClassification",
        {**_VISION, "max_length": 32, "num_mel_bins": 16},
    ),
    Family(
        "upernet",
        "AutoModelForSemanticSegmentation",
        {"backbone_config": _SWIN_BACKBONE, "hidden_size": 16, "auxiliary_in_channels": 64},
        targets=("q_proj", "v_proj", "fc1", "fc2"),
    ),
    Family(
        "mask2former",
        "AutoModelForUniversalSegmentation",
        {
            "backbone_config": _SWIN_BACKBONE,
            **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),
            **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 48),
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "num_queries": 5,
        },
        targets=("q_proj", "v_proj", "fc1", "fc2"),
    ),
    Family(
        "zoedepth",
        "AutoModelForDepthEstimation",
        {
            "backbone_config": {
                **_VISION,
                "model_type": "beit",
                "num_hidden_layers": 4,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            "backbone_hidden_size": 32,
            "neck_hidden_sizes": [8, 8, 16, 16],
            **dict.fromkeys(("bottleneck_features", "fusion_hidden_size", "num_relative_features"), 16),
        },
    ),
    Family(
        "vision-encoder-decoder",
        "AutoModelForImageTextToText",
        {
            "encoder": {**_VISION, "model_type": "deit"},
            "decoder": {**_GPT2, "model_type": "gpt2", "is_decoder": True, "add_cross_attention": True},
        },
        targets=("q_proj", "fc1", "c_attn", "c_proj", "q_attn"),
        turned=r"\.(c_(attn|proj|fc)|q_attn)\.weight",
    ),
)


def build(family: Family, dtype: str = "float32"):
    """Return a tiny model with random weights that are the same in every run."""
    import torch
    import transformers

    torch.manual_seed(zlib.crc32(family.kind.encode()))
    config = transformers.AutoConfig.for_model(family.kind, **family.config)
    model = getattr(transformers, family.model).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.to(getattr(torch, dtype))


def adapted(model, **options: Any):
    """Return the model with a LoRA of PEFT whose factors are large enough to plant intruders."""
    import peft
    import torch

    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": "all-linear", **options})
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if re.search(r"lora_(embedding_)?[AB]", name):
                parameter.normal_(std=0.5 * parameter.shape[-1] ** -0.5)
            elif "modules_to_save" in name and parameter.ndim > 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return wrapped


def matrices(folder: Path) -> dict[str, np.ndarray]:
    """Return every matrix of a folder by name, in double precision; stacks of experts one by one, as `name[3]`."""
    import torch
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        for name, tensor in load_file(file).items():
            value = tensor.to(torch.float64).numpy() if tensor.is_floating_point() else tensor.numpy()
            if name.endswith("_bias"):  # a row for each expert
                continue
            if value.ndim == 2:
                found[name] = value
            elif value.ndim == 3 and "conv" not in name:
                found |= {f"{name}[{i}]": one for i, one in enumerate(value)}
    return found


def counted(base: np.ndarray, tuned: np.ndarray, top: int, threshold: float = 0.5) -> int:
    """Return the number of intruders that two decompositions find among the left vectors of matrices (outputs, inputs)."""
    before, after = np.linalg.svd(base, full_matrices=False)[0], np.linalg.svd(tuned, full_matrices=False)[0]
    return int((np.abs(before.T @ after[:, :top]).max(0) < threshold).sum())
