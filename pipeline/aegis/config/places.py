"""Which settings name a place: a card or a page that leaves this machine shows only the last part of a path."""

from __future__ import annotations

from functools import cache

from aegis.config.settings import SECTIONS
from aegis.config.stage_config import names_place


@cache
def place_settings() -> frozenset[str]:
    """Return the names of all stages' settings that hold a path, or may hold one."""
    fields = [pair for model in SECTIONS.values() for pair in model.model_fields.items()]
    return frozenset(name for name, field in fields if names_place(name, field.annotation))
