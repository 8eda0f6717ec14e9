"""Reads the rows of a data set of the datasets library; images, audio and other media stay as they are stored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aegis.data.records import Row
from aegis.data.rejects import Rejects
from aegis.errors import DataError
from aegis.messages import phrase


@dataclass
class HubSource:
    """A data set of the datasets library, memory-mapped: in its cache, or in a folder of `save_to_disk`.

    Raises:
        ValueError: it was saved with a choice of columns that it does not have.
    """

    name: str
    data: Any
    unit: str = "rows"
    position: float = 0

    def __post_init__(self) -> None:
        self.total: float = len(self.data)
        chosen = self.data.format
        columns = None if chosen["output_all_columns"] else chosen["columns"]
        self.data = self.data.with_format("arrow", columns=columns)

    def sha256(self) -> str:
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for row in self._stored():
            digest.update(_line(row))
        return digest.hexdigest()

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        word, digest = phrase("files.row"), hashlib.sha256()
        hashed = self.__dict__.get("_sha256")
        for number, row in enumerate(self._stored(), 1):
            self.position = number
            if hashed:
                digest.update(_line(row))
            yield Row(f"{self.name}:{word} {number}", row)
        if hashed and digest.hexdigest() != hashed:
            raise DataError("dataset.changed", name=self.name)

    def _stored(self) -> Iterator[dict[str, Any]]:
        """Yield the rows with the bytes of media in place of objects.

        Nothing trains on media, so that a broken image stops nobody who leaves it out, and no decoder is needed. Two
        objects of one image also have different texts, and so different hashes.
        """
        features = self.data.features
        stored = type(features)({name: _undecoded(feature) for name, feature in features.items()})
        for table in self.data:
            (row,) = table.to_pylist()
            yield stored.decode_example(row)


def _undecoded(feature: Any) -> Any:
    """Return a feature whose media are not decoded; JSON is, because its values are rows like others."""
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, list | tuple):
        return [_undecoded(inner) for inner in feature]
    if dataclasses.is_dataclass(feature) and not isinstance(feature, type):
        if hasattr(feature, "feature"):
            return dataclasses.replace(feature, feature=_undecoded(feature.feature))
        # by name, because older releases of the library have no JSON
        if getattr(feature, "decode", False) and type(feature).__name__ != "Json":
            return dataclasses.replace(feature, decode=False)
    return feature


def _line(row: object) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode() + b"\n"
