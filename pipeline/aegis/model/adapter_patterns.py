"""Matches rank_pattern and alpha_pattern of an adapter to module names, as peft does.

peft reads each key as a regular expression that must match the end of a module's name, from a dot or the start.
Python's engine may never end with an untrusted expression, so a key that is not a plain name goes to RE2, which takes
linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from aegis.errors import IntegrityError
from aegis.limits import ADAPTER_PATTERNS

_NAME = re.compile(r"[\w.]+")  # a dot counts as a dot: no module's name differs from another's only in that character


def values_of(patterns: object, modules: Iterable[str], config: str) -> dict[str, object]:
    """Return the value of the first matching pattern for every module that has one.

    Args:
        config: the file's name, for errors.

    Raises:
        IntegrityError: RE2 cannot parse a pattern, or there are too many.
    """
    if not isinstance(patterns, dict) or not patterns:
        return {}
    names = list(modules)
    place = {pattern: number for number, pattern in enumerate(patterns)}
    expressions = [pattern for pattern in patterns if _NAME.fullmatch(pattern) is None]
    if len(expressions) > ADAPTER_PATTERNS:
        raise IntegrityError("adapter.many_patterns", config=config, count=len(expressions), most=ADAPTER_PATTERNS)
    first = {name: min((place[end] for end in _ends(name) if end in place), default=len(place)) for name in names}
    for pattern in expressions:
        for name in _matched(pattern, names, config):
            first[name] = min(first[name], place[pattern])
    values = list(patterns.values())
    return {name: values[number] for name, number in first.items() if number < len(values)}


def _ends(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _matched(pattern: str, names: list[str], config: str) -> list[str]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.compute  # type: ignore[import-untyped]

    compute: Any = pyarrow.compute
    try:
        found = compute.match_substring_regex(pyarrow.array(names, pyarrow.string()), pattern=rf"^(.*\.)?({pattern})$")
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise IntegrityError("adapter.no_pattern", config=config, pattern=pattern, error=str(error)) from None
    matches: Mapping[str, bool] = dict(zip(names, found.to_pylist(), strict=True))
    return [name for name in names if matches[name]]
