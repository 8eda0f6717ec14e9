"""One row as it was read."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """`where` is for people (file:line), `value` whatever the file held."""

    where: str
    value: object
