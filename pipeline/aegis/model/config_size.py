"""The numbers of config.json within bounds: transformers builds as many modules as it is told to, at whatever price."""

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
    """Refuse a config that describes a model larger than any there is.

    Raises:
        UnsupportedModelError: naming the key.
    """
    layers = experts = 1
    for key, value in _numbers(config):
        most = next(bound for pattern, bound in _BOUNDS if pattern.search(key))
        if abs(value) > most:
            raise UnsupportedModelError("families.too_large", key=key, value=value, most=most)
        layers = max(layers, value) if most == LAYERS else layers
        experts = max(experts, value) if most == EXPERTS else experts
    if (both := layers * experts) > EXPERTS_OF_ALL_LAYERS:
        raise UnsupportedModelError("families.too_large", key="experts", value=both, most=EXPERTS_OF_ALL_LAYERS)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer that has a name, those of a config within the config too."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            yield key.lower(), int(value)
