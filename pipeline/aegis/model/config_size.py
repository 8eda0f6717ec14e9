"""Refuses config.json with too large numbers: transformers builds as many modules as it says, whatever their memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aegis.errors import UnsupportedModelError
from aegis.limits import CONFIG_NUMBER, EXPERTS, EXPERTS_OF_ALL_LAYERS, LAYERS, VOCABULARY

_BOUNDS = (
    (re.compile(r"layer|n_blocks|num_blocks"), LAYERS),
    (re.compile(r"expert"), EXPERTS),
    (re.compile(r"vocab"), VOCABULARY),
    (re.compile(r""), CONFIG_NUMBER),
)


def check_size(config: Mapping[str, Any]) -> None:
    """Refuse a config that describes a model larger than any known one.

    Raises:
        UnsupportedModelError: a number exceeds its bound; it names the key.
    """
    layers = experts = 1
    for key, value in _numbers(config):
        maximum = next(bound for pattern, bound in _BOUNDS if pattern.search(key))
        if abs(value) > maximum:
            raise UnsupportedModelError("families.too_large", key=key, value=value, most=maximum)
        layers = max(layers, value) if maximum == LAYERS else layers
        experts = max(experts, value) if maximum == EXPERTS else experts
    if (product := layers * experts) > EXPERTS_OF_ALL_LAYERS:
        raise UnsupportedModelError("families.too_large", key="experts", value=product, most=EXPERTS_OF_ALL_LAYERS)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every integer with its key, nested configs included."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            yield key.lower(), int(value)
