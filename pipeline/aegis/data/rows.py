"""A row of a source."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A row as it was read: `where` is its place for messages (file:line), `value` what the file has there."""

    where: str
    value: object
