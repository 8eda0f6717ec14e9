"""Which settings name a place: a card or a page that leaves this machine shows only the last part of a path."""

from __future__ import annotations

from functools import cache

from aegis.config.settings import SECTIONS

_TEXTS = {"base_model", "dataset", "keep_data"}
"""Settings of type str that hold a path or a Hub id."""


@cache
def place_settings() -> frozenset[str]:
    """Return the names of all stages' settings that hold a path, or may hold one."""
    fields = [pair for model in SECTIONS.values() for pair in model.model_fields.items()]
    return frozenset(_TEXTS | {name for name, field in fields if "Path" in str(field.annotation)})
