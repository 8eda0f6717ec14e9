"""Where rows come from: a local file or a Hub dataset."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aegis.data.files import READERS, FileSource, Row
from aegis.data.rejects import Rejects
from aegis.errors import EnvironmentFault, UsageError
from aegis.messages import phrase


class Source(Protocol):
    """`position` moves towards `total` (both in `unit`) while `rows` is being read."""

    name: str
    total: float
    unit: str
    position: float

    def sha256(self) -> str:
        """A digest of all rows, in hex."""
        ...

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        """Every row that could be read; the others go to `rejects`."""
        ...


def open_source(source: str | Path, *, split: str = "train", revision: str | None = None) -> Source:
    """Find a file, or a Hub dataset named `owner/name`.

    Raises:
        UsageError: no such file, a directory, a kind of file that is not read, no such dataset.
        EnvironmentFault: the Hub could not be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise UsageError("sources.directory", path=path)
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise UsageError(
                "sources.unknown_suffix", path_name=path.name, suffix=path.suffix, readers=", ".join(sorted(READERS))
            )
        return FileSource(path, reader)
    if is_hub_dataset(str(source)):
        return _open_hub(str(source), split, revision)
    raise UsageError("sources.no_file", path=path)


def is_hub_dataset(name: str) -> bool:
    """Whether a name is `owner/name` on the Hub, and no file here."""
    path = Path(name).expanduser()
    return (
        path.suffix.lower() not in READERS
        and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
        and not path.exists()
    )


@dataclass
class HubSource:
    """A Hub dataset, on disk in the `datasets` cache and memory-mapped."""

    name: str
    data: Any
    unit: str = "rows"
    position: float = 0

    def __post_init__(self) -> None:
        self.total: float = len(self.data)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for row in self.data:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        word = phrase("files.row")
        for number, row in enumerate(self.data, 1):
            self.position = number
            yield Row(f"{self.name}:{word} {number}", row)


def _open_hub(dataset: str, split: str, revision: str | None) -> HubSource:
    """Fetch a Hub dataset; `datasets` 4 and later run no code out of a dataset's repository."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        data = datasets.load_dataset(dataset, split=split, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise UsageError("sources.not_found", dataset=dataset, error=str(error)) from error
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise EnvironmentFault("sources.not_fetched", dataset=dataset, error=str(error)) from error
    return HubSource(f"{dataset}[{split}]", data)
