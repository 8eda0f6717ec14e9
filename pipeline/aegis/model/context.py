"""Context lengths: the one that a base was trained with, and the one that its result is run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aegis.errors import IntegrityError
from aegis.llama_cpp import MAX_CONTEXT


def original_context(config: Mapping[str, Any]) -> int | None:
    """Return the context length in tokens, before LongRoPE extended it; None if config.json has none.

    Raises:
        IntegrityError: it is not a positive number.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    key = "original_max_position_embeddings"
    within_scaling = scaling.get(key) if isinstance(scaling, Mapping) else None
    found = config.get(key) or within_scaling or config.get("max_position_embeddings")
    if found is None:
        return None
    if type(found) is not int or found <= 0:
        raise IntegrityError("base.context", found=str(found))
    return found


def context_tokens(config: Mapping[str, Any]) -> int:
    """Return the context length, in tokens, to run a model with.

    Beyond the original length of a LongRoPE base, llama.cpp uses other factors for every token.

    Raises:
        IntegrityError: config.json has one that is not a positive number.
    """
    return min(MAX_CONTEXT, original_context(config) or MAX_CONTEXT)
