"""Reads a user's own names for columns, such as `question=instruction` and `notes=ignore`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from aegis.data.rejects import RowError
from aegis.errors import UsageError
from aegis.messages import phrase

IGNORE = "ignore"
"""The word in `--columns NAME=ignore` for a column that is left out on purpose."""

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class Columns:
    """A user's own names for keys of rows or messages.

    Args:
        pairs: NAME=KNOWN; KNOWN is a known key or "ignore". NAME may stand in double quotes, and then have a comma, or
            spaces at its ends, or be empty; "" in it is a quote.
        known: the known keys.

    Raises:
        UsageError: a pair does not have this form, or KNOWN is not a known key.
    """

    def __init__(self, pairs: Iterable[str], known: Collection[str]) -> None:
        self._names: dict[str, str] = {}
        for pair in pairs:
            # a name may have a "=", a known key has none
            name, equals, meaning = (part.strip() for part in pair.rpartition("="))
            quoted = _QUOTED.fullmatch(name)
            written = quoted[1].replace('""', '"') if quoted else name
            if not (name and equals and meaning) or written in self._names:
                raise UsageError("columns.malformed", pair=pair)
            if meaning != IGNORE and meaning not in known:
                near = difflib.get_close_matches(meaning, known, n=1)
                hint = phrase("config.nearest", name=near[0]) if near else ""
                raise UsageError(
                    "columns.unknown", pair=pair, meaning=meaning, hint=hint, known=", ".join(sorted(known))
                )
            self._names[written] = meaning

    def renamed(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values under known names, without the ignored ones.

        Raises:
            RowError: a value gets a name that another one has.
        """
        if not self._names:
            return values
        found: dict[str, object] = {}
        for name, value in values.items():
            meaning = self._names.get(name, name)
            if meaning == IGNORE:
                continue
            if meaning in found or (meaning != name and meaning in values and meaning not in self._names):
                raise RowError(phrase("columns.twice", name=name, meaning=meaning))
            found[meaning] = value
        return found
