"""Which bases come through the pipeline unharmed, and which are refused before any work, with the reason.

What llama.cpp's converter does to each was read in its tree (conversion/*.py at the pinned commit); what is called
proven here has an end-to-end test, live soul against GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aegis.errors import UnsupportedModelError

PROVEN = frozenset({"phi3", "llama", "mistral"})

_HEAD_DROPPED = (
    "llama.cpp's converter drops its lm_head.weight and the runtime uses the embeddings instead, "
    "so the soul folded into the head would vanish without a word"
)
REFUSED: Mapping[str, str] = {
    "gemma": _HEAD_DROPPED,
    "gemma2": _HEAD_DROPPED,
    "gemma3n_text": _HEAD_DROPPED,
    "cohere": "llama.cpp has no place for an LM head of its own in this architecture",
    "cohere2": "llama.cpp has no place for an LM head of its own in this architecture",
}


def check_family(config: Mapping[str, Any]) -> None:
    """Refuse a base, by its config.json, that cannot come out whole.

    Raises:
        UnsupportedModelError: with the reason; nothing was read but the config.
    """
    model_type = str(config.get("model_type", ""))
    listed = config.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
    called = f"{model_type or 'this model'} ({', '.join(architectures) or 'no architecture named'})"
    if model_type in REFUSED:
        raise UnsupportedModelError(f"{called} is not supported", why=REFUSED[model_type])
    if "_attn_implementation_internal" in config:
        raise UnsupportedModelError(
            f"{called}: config.json sets _attn_implementation_internal",
            why="that key can make transformers fetch and run code (CVE-2026-4372)",
            fix="remove the key from config.json if you trust the rest of the folder",
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else "unknown"
        raise UnsupportedModelError(
            f"{called} is already quantized ({method})",
            why="the adapter is merged into 16-bit weights, and these are gone from it",
            fix="give the 16-bit original of this model",
        )
    if not any(name.endswith("ForCausalLM") for name in architectures):
        raise UnsupportedModelError(f"{called} is not a decoder language model", why="no architecture …ForCausalLM")
    if not _has_native_class(model_type):
        raise UnsupportedModelError(
            f"{called}: the installed transformers has no class of its own for it",
            why="code that comes with a model is never run",
        )


def _has_native_class(model_type: str) -> bool:
    if model_type in PROVEN:
        return True
    # a second to load, which a merge of a proven family need not spend
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
