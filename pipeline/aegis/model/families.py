"""Lists the model families that the pipeline reproduces exactly, and those that are refused, with the reason.

What llama.cpp's converter does to each family was read in its source (conversion/*.py at the pinned commit), and what
its runtime loads in src/models/*.cpp. A proven family has an end-to-end test, live soul against GGUF, for every LM head
that it names, and a comparison of token ids for every kind of tokenizer. The README's table is made from PROVEN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aegis.errors import UnsupportedModelError
from aegis.messages import phrase
from aegis.model.config_size import check_size
from aegis.model.shards import HEAD, HEAD_BIAS
from aegis.model.vocabulary import Vocabulary

HeadKind = Literal["own", "tied", "with bias"]

_SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """A family that the pipeline reproduces exactly.

    Attributes:
        name: the name in the README's table.
        heads: the LM heads that it was proven with.
        ropes: the kinds of rotary embedding that it was proven with, by the names of `rope_of`.
        targets: its attention projections, which get the adapter.
        vocabularies: the kinds of tokenizer whose ids were compared between transformers and llama.cpp.
        remark: the last column of the README's table.
        norm: the module of the final norm; only the LM head reads its output.
        norm_offset: o of a norm that multiplies by w + o: 1 for Gemma's RMSNorm.
    """

    name: str
    heads: tuple[HeadKind, ...]
    vocabularies: tuple[Vocabulary, ...]
    targets: tuple[str, ...] = _SPLIT
    remark: str = ""
    norm: str = "model.norm"
    norm_offset: float = 0.0
    ropes: tuple[str, ...] = ("default",)


PROVEN: Mapping[str, Family] = {
    "phi3": Family(
        "Phi-3, Phi-3.5",
        ("own",),
        ("SentencePiece",),
        ("qkv_proj", "o_proj"),
        remark="fused projections, LongRoPE",
        ropes=("longrope",),
    ),
    "llama": Family("Llama", ("own", "tied"), ("byte-level BPE", "SentencePiece"), ropes=("default", "llama3")),
    "mistral": Family("Mistral", ("own",), ("SentencePiece", "byte-level BPE")),
    "qwen2": Family("Qwen2, Qwen2.5", ("own", "tied"), ("byte-level BPE",), remark="bias on q, k and v"),
    "qwen3": Family("Qwen3", ("own", "tied"), ("byte-level BPE",), remark="norms on q and k"),
    "gemma3_text": Family(
        "Gemma 3, text only",
        ("tied",),
        ("SentencePiece",),
        remark="refused if conversion cuts the embeddings",
        norm_offset=1.0,
    ),
    "smollm3": Family("SmolLM3", ("tied",), ("byte-level BPE",), remark="layers without RoPE"),
    "phi": Family(
        "Phi-1.5, Phi-2",
        ("with bias",),
        ("byte-level BPE",),
        ("q_proj", "k_proj", "v_proj", "dense"),
        norm="model.final_layernorm",
        ropes=("default", "default of a part"),
    ),
}

REFUSED: Mapping[str, str] = {
    "gemma": "families.head_dropped",
    "gemma2": "families.head_dropped",
    "cohere": "families.no_place",
    "cohere2": "families.no_place",
}

_BIASED_HEADS = frozenset({"phi", "phimoe"})
"""Families whose output.bias llama.cpp loads (src/models/phi2.cpp, phimoe.cpp) and transformers trains."""
_GEMMA_27B_LAYERS = 62


def check_family(config: Mapping[str, Any]) -> None:
    """Refuse a base that the pipeline cannot reproduce exactly, by its config.json alone.

    Raises:
        UnsupportedModelError: it cannot; the message has the reason.
    """
    model_type = str(config.get("model_type", ""))
    listed = config.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
    called = phrase(
        "families.called",
        model_type=model_type or phrase("families.this_model"),
        architectures=", ".join(architectures) or phrase("families.no_architecture"),
    )
    if model_type in REFUSED:
        raise UnsupportedModelError("families.refused", called=called, reason=phrase(REFUSED[model_type]))
    if "_attn_implementation_internal" in config:
        raise UnsupportedModelError("families.internal_attention", called=called)
    quantization = config.get("quantization_config")
    if quantization:
        known = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        method = phrase("families.unknown_method") if known is None else known
        raise UnsupportedModelError("families.already_quantized", called=called, method=method)
    if not any(name.endswith("ForCausalLM") for name in architectures):
        raise UnsupportedModelError("families.not_a_decoder", called=called)
    if not _has_native_class(model_type):
        raise UnsupportedModelError("families.no_class", called=called)
    check_size(config)
    if model_type == "gemma3_text":
        _check_attention_scale(called, config)


def check_head_bias(config: Mapping[str, Any], tensors: Collection[str]) -> None:
    """Refuse a base whose LM head has a bias that llama.cpp would not load.

    Args:
        config: the content of config.json.
        tensors: the names of the base's tensors.

    Raises:
        UnsupportedModelError: it has one.
    """
    if HEAD_BIAS in tensors and config.get("model_type") not in _BIASED_HEADS:
        raise UnsupportedModelError("families.head_bias", model_type=config.get("model_type"))


def unproven_parts(
    config: Mapping[str, Any], tensors: Collection[str], vocabulary: Vocabulary | None
) -> dict[str, str] | None:
    """Return the parts of a base that its family was not proven with, and their kind.

    Args:
        config: the content of config.json.
        tensors: the names of the base's tensors.
        vocabulary: its kind of tokenizer, if it is known.

    Returns:
        An empty dict for a proven base; None for a family that was not proven.
    """
    family = PROVEN.get(str(config.get("model_type")))
    if family is None:
        return None
    parts = {}
    if (head := head_of(config, tensors)) not in family.heads:
        parts["head"] = str(head)
    if vocabulary and vocabulary not in family.vocabularies:
        parts["tokenizer"] = vocabulary
    if (rope := rope_of(config)) not in family.ropes:
        parts["rope"] = rope
    return parts


def head_of(config: Mapping[str, Any], tensors: Collection[str]) -> HeadKind:
    """Return the kind of a base's LM head."""
    if HEAD_BIAS in tensors:
        return "with bias"
    return "tied" if HEAD not in tensors or config.get("tie_word_embeddings") is True else "own"


def rope_of(config: Mapping[str, Any]) -> str:
    """Return the kind of rotary embedding by an old or new config.json, and whether it turns only a part of a head."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        return "unknown"
    # Gemma 3 has one rotary embedding per kind of layer
    each = [scaling, *(inner for inner in scaling.values() if isinstance(inner, Mapping))]
    kinds = {str(inner.get("rope_type") or inner.get("type") or "default") for inner in each}
    kind = ", ".join(sorted(kinds - {"default"})) or "default"
    part = config.get("partial_rotary_factor") or scaling.get("partial_rotary_factor") or 1.0
    return kind if part == 1.0 else f"{kind} of a part"


def _check_attention_scale(called: str, config: Mapping[str, Any]) -> None:
    """Refuse a Gemma 3 whose config has another attention scale than llama.cpp takes from its shape.

    (src/models/gemma3.cpp)
    """
    head_dim, scalar = config.get("head_dim", 256), config.get("query_pre_attn_scalar", 256)
    if config.get("num_hidden_layers") == _GEMMA_27B_LAYERS:
        head_dim = config.get("hidden_size", 0) // max(1, config.get("num_attention_heads", 1))
    if scalar != head_dim:
        raise UnsupportedModelError("families.attention_scale", called=called, scalar=scalar, head_dim=head_dim)


def _has_native_class(model_type: str) -> bool:
    if model_type in PROVEN:
        return True
    # this import takes a second, and a proven family does not need it
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
