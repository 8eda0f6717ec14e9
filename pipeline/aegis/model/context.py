"""The context: how many tokens a base was trained on, and how many its result is run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_TOKENS = 4096


def original_context(config: Mapping[str, Any]) -> int | None:
    """Tokens of the context, before LongRoPE stretched it; None where config.json says nothing."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    key = "original_max_position_embeddings"
    within_scaling = scaling.get(key) if isinstance(scaling, Mapping) else None
    found = config.get(key) or within_scaling or config.get("max_position_embeddings")
    return int(found) if found else None


def context_tokens(config: Mapping[str, Any]) -> int:
    """Tokens to run a model with: past a LongRoPE base's original length llama.cpp changes every token's factors."""
    return min(_MAX_TOKENS, original_context(config) or _MAX_TOKENS)
