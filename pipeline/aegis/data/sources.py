"""Opens the sources of rows: files, folders and Hub datasets."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from aegis import progress
from aegis.data.files import FileSource, kinds, reader_of
from aegis.data.hub_source import HubSource
from aegis.data.records import Row
from aegis.data.rejects import Rejects
from aegis.errors import DataError, UsageError, first_line
from aegis.hub.client import is_hub_id
from aegis.hub.datasets import load_hub_dataset
from aegis.messages import phrase
from aegis.runs import named_paths
from aegis.runs.disk import at_home

_SPLIT = "train"
"""The split of a data set with several."""

_OF_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` of the datasets library writes; one of them decides how a folder is read."""


class Source(Protocol):
    """A source of rows; `position` moves towards `total` (both in `unit`) while `rows` is read."""

    name: str
    total: float
    unit: str
    position: float

    def sha256(self) -> str:
        """Return a digest of all rows in hexadecimal; `rows` then refuses to read others."""
        ...

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        """Yield every row that can be read; the others go to `rejects`."""
        ...


def open_source(source: str | Path) -> Source:
    """Open a file, several files, a folder of files, a folder of `save_to_disk`, or a Hub dataset `owner/name`.

    Several files are given by a pattern (`data/*.jsonl`) or separated by commas.

    Raises:
        UsageError: there is no such file or dataset, its name is empty, or the format is not known.
        EnvironmentFault: the Hub cannot be reached.
    """
    _refuse_no_name(str(source))
    path = at_home(source)
    if named_paths.is_folder(path):
        return _open_folder(path)
    if named_paths.is_file(path):
        return _open_file(path)
    found = _several(str(source))
    if found:
        return ManySources(str(source), [_open_file(each) for each in found])
    if is_hub_dataset(str(source)):
        return HubSource(f"{source}[{_SPLIT}]", load_hub_dataset(str(source), _SPLIT))
    raise UsageError("sources.no_file", path=path)


def refuse_absent(source: str) -> None:
    """Refuse data that is not here, empty, or of a kind that is not read; nothing is read, and the Hub is not asked.

    Raises:
        UsageError: no such file, an empty name, or no file of it is of a kind that is read.
        DataError: the file is empty.
    """
    _refuse_no_name(source)
    path = at_home(source)
    if named_paths.is_folder(path):
        if _saved_by(path) is None and not any(reader_of(file) for file in path.iterdir() if file.is_file()):
            raise UsageError("sources.empty_folder", path=path, readers=kinds())
    elif not is_hub_dataset(source):
        open_source(source)
        if named_paths.is_file(path) and path.stat().st_size == 0:
            raise DataError("dataset.empty", name=path.name)


def names_hub_dataset(name: str) -> bool:
    """Whether a name has the form of a Hub id and not of a data file; this does not depend on the machine."""
    return is_hub_id(name) and reader_of(Path(name)) is None


def public_name(name: str) -> str:
    """Return a Hub id as it is, or the last part of each local path: the rest of a path is private."""
    if names_hub_dataset(name):
        return name
    return ",".join(Path(part.strip()).name or part.strip() for part in name.split(","))


def is_hub_dataset(name: str) -> bool:
    """Whether a name has the form of a Hub dataset's id, and no file here has this name."""
    return names_hub_dataset(name) and not named_paths.exists(at_home(name))


def _refuse_no_name(*names: str) -> None:
    """Refuse an empty name; as a path it would be the current folder."""
    if not all(name.strip() for name in names):
        raise UsageError("sources.no_name")


def _open_file(path: Path) -> FileSource:
    reader = reader_of(path)
    if reader is None:
        raise UsageError("sources.unknown_suffix", path_name=path.name, suffix=path.suffix, readers=kinds())
    return FileSource(path, reader)


def _several(name: str) -> list[Path]:
    """Return the files of a pattern, sorted by name, or of a list with commas, in its order."""
    parts = [at_home(part.strip()) for part in name.split(",") if part.strip()]
    if len(parts) > 1 and all(map(named_paths.is_file, parts)):
        _refuse_no_name(*name.split(","))
        return parts
    if not any(sign in name for sign in "*?["):
        return []
    # Path.glob accepts no absolute pattern
    matches = sorted(map(Path, glob.glob(str(at_home(name)), recursive=True)))  # noqa: PTH207
    if "**" not in name:
        _name_folders(name, [path for path in matches if path.is_dir()])
    return [path for path in matches if path.is_file()]


def _open_folder(path: Path) -> Source:
    """Open a folder that the datasets library's `save_to_disk` wrote, or all readable files of any other folder."""
    if (decided_by := _saved_by(path)) is not None:
        return _open_saved(path, decided_by)
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    files = [entry for entry in entries if entry.is_file()]
    readable = [file for file in files if reader_of(file)]
    if not readable:
        raise UsageError("sources.empty_folder", path=path, readers=kinds())
    progress.say(phrase("sources.folder", path=path, count=len(readable), names=_first(readable)))
    others = [file for file in files if file not in readable]
    if others:
        progress.say(phrase("sources.not_read", path=path, names=_first(others)))
    _name_folders(str(path), [entry for entry in entries if entry.is_dir()])
    return ManySources(str(path), [_open_file(file) for file in readable])


def _name_folders(name: str, folders: Sequence[Path]) -> None:
    if folders:
        pattern = folders[0].parent / "**" / "*.jsonl"
        progress.say(phrase("sources.folders_not_read", path=name, names=_first(folders), pattern=pattern))


def _first(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:8]) + (" ..." if len(files) > 8 else "")


class ManySources:
    """Several sources, one after the other, as one source."""

    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name = name
        self.unit = "B"
        self.position: float = 0
        self.total: float = sum(source.total for source in sources)
        self._sources = sources

    def sha256(self) -> str:
        """Return a digest of all sources in their order; their names do not count."""
        return hashlib.sha256("".join(source.sha256() for source in self._sources).encode()).hexdigest()

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        """Yield the rows of each source in order."""
        done = 0.0
        for source in self._sources:
            for row in source.rows(rejects):
                self.position = done + source.position
                yield row
            done += source.total
            self.position = done


def _saved_by(path: Path) -> str | None:
    """Return the name of the file by which a folder counts as one of `save_to_disk`; None if it does not."""
    return next((name for name in _OF_SAVED if (path / name).is_file()), None)


def _open_saved(path: Path, decided_by: str) -> HubSource:
    """Open the output of `save_to_disk`: a data set, or several by the names of their splits."""
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
        if not isinstance(data, datasets.DatasetDict):
            return HubSource(str(path), data)
        if _SPLIT in data:
            return HubSource(str(path), data[_SPLIT])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # the library trusts these files: without a key, or with a list in place of an object, it raises anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError("sources.not_saved", path=path, name=decided_by, error=reason) from error
    raise UsageError("sources.no_split", path=path, split=_SPLIT, splits=", ".join(data))
