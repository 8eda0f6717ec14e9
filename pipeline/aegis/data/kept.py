"""Kept text: windows for the keep loss, which holds a training near its base; the last eighth is only evaluated.

Every token of a kept text counts except the first, because nothing comes before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis.data import cache
from aegis.data.packing import Windows
from aegis.data.tokens import TokenFile, encoded
from aegis.errors import IntegrityError
from aegis.runs.manifest import Manifest, finished, read_manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.runs.run import Run

FILE_NAME = "kept.windows"
_HELDOUT_PART = 8
"""One window in _HELDOUT_PART is held out."""
MIN_TOKENS = 8
"""Minimum tokens of a text, and of the rest of a window that is still filled."""


@dataclass(frozen=True)
class KeptReport:
    """The numbers of a kept text.

    Attributes:
        source: "written" by the base, the user's "data", or "both".
        windows, heldout_windows: number of trained and of held-out windows.
        tokens: tokens in all windows.
        texts: number of texts that the base wrote; 0 if it wrote none.
        ended: how many of them the base ended itself.
        looping: how many were cut off where they began to repeat.
        too_short: how many were left out because they were too short, or equal to an earlier one.
        precision: "16bit" or "4bit", the base's precision when it wrote; "" if it wrote nothing.
        key: hash of everything that the written text depends on, except device and precision; "" if not all text is
            written.
    """

    source: str
    windows: int
    heldout_windows: int
    tokens: int
    texts: int = 0
    ended: int = 0
    looping: int = 0
    too_short: int = 0
    precision: str = ""
    key: str = ""


@dataclass(frozen=True)
class Kept:
    """The kept windows for training, and the held-out ones for evaluation."""

    train: Windows
    heldout: Windows
    report: KeptReport

    @property
    def sha256(self) -> str:
        """A hash of every token and of the starts of texts."""
        digest = hashlib.sha256()
        for part in (self.train, self.heldout):
            for array in (part.first_piece, part.first_token):
                digest.update(array.astype("<i8").tobytes())
            digest.update(part.tokens.read(0, len(part.tokens)).tobytes())
        return digest.hexdigest()


def split(windows: Windows, report: KeptReport) -> Kept:
    """Hold the last eighth of the windows out, at least one; there must be two windows."""
    heldout = max(1, len(windows) // _HELDOUT_PART)
    train = len(windows) - heldout
    assert train > 0, "one window is nothing to split"
    report = replace(report, windows=train, heldout_windows=heldout, tokens=len(windows.tokens))
    return Kept(select(windows, range(train)), select(windows, range(train, len(windows))), report)


def fill(texts: Sequence[NDArray[np.int32]], count: int, max_length: int, pad_token_id: int) -> Windows:
    """Put texts one after the other into at most `count` windows; the end of a text that does not fit is lost."""
    tokens, first_token, first_piece = TokenFile.unnamed(), [0], [0]
    remaining = iter(texts)
    for window in _layout([len(text) for text in texts], count, max_length):
        for length in window:
            piece = next(remaining)[:length]
            counted = np.ones(length, np.bool_)
            counted[:1] = False
            tokens.append(encoded(piece, counted))
            first_token.append(len(tokens))
        first_piece.append(len(first_token) - 1)
    return _windows(max_length, pad_token_id, tokens, first_token, first_piece)


def missing_tokens(lengths: Sequence[int], count: int, max_length: int) -> int:
    """Return the number of tokens that `fill` could still take."""
    used = [sum(window) for window in _layout(lengths, count, max_length)]
    room = max_length - used[-1] if used else 0
    return (count - len(used)) * max_length + (room if room >= _room_wanted(max_length) else 0)


def _layout(lengths: Sequence[int], count: int, max_length: int) -> list[list[int]]:
    """Return the number of tokens of each text for each window, in order."""
    windows: list[list[int]] = []
    room = 0
    for length in lengths:
        if room < _room_wanted(max_length):
            if len(windows) == count:
                break
            windows.append([])
            room = max_length
        windows[-1].append(min(length, room))
        room -= windows[-1][-1]
    return windows


def _room_wanted(max_length: int) -> int:
    return min(MIN_TOKENS, max_length)


def select(windows: Windows, numbers: Sequence[int]) -> Windows:
    """Return the windows with these numbers, in this order."""
    return joined([(windows, number) for number in numbers])


def joined(chosen: Sequence[tuple[Windows, int]]) -> Windows:
    """Join windows from several sets with the same length, in this order; there must be at least one."""
    tokens, first_token, first_piece = TokenFile.unnamed(), [0], [0]
    for windows, number in chosen:
        edges = windows.first_token[windows.first_piece[number] : windows.first_piece[number + 1] + 1]
        tokens.append(windows.tokens.read(int(edges[0]), int(edges[-1])))
        first_token.extend((edges[1:] - edges[0] + first_token[-1]).tolist())
        first_piece.append(len(first_token) - 1)
    first = chosen[0][0]
    return _windows(first.max_length, first.pad_token_id, tokens, first_token, first_piece)


def _windows(
    max_length: int, pad_token_id: int, tokens: TokenFile, first_token: list[int], first_piece: list[int]
) -> Windows:
    edges, pieces = np.array(first_token, np.int64), np.array(first_piece, np.int64)
    counted = np.concatenate([[0], np.cumsum(tokens.read(0, len(tokens)) >= 0)]).astype(np.int64)
    return Windows(max_length, pad_token_id, tokens, edges, pieces, np.diff(counted[edges[pieces]]))


def store(path: Path, kept: Kept) -> None:
    """Write kept text to a file, atomically.

    Raises:
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    cache.store(path, _parts(kept), asdict(kept.report))


def _parts(kept: Kept) -> dict[str, Windows]:
    return {"train": kept.train, "heldout": kept.heldout}


def load(path: Path) -> Kept | None:
    """Read the output of `store`; None if the file is missing, or damaged, in which case it is removed."""
    found = cache.load(path)
    if found is None:
        return None
    windows, report = found
    return Kept(windows["train"], windows["heldout"], KeptReport(**report))


def publish(run: Run, kept: Kept, manifest: Manifest) -> None:
    """Publish kept text in a run, so that later stages have it even if the run moves; nothing if it is there.

    Raises:
        UsageError, EnvironmentFault: as in `publishing`.
    """
    if run.kept.is_dir() and finished(run.kept, manifest) is not None:
        return
    with publishing(run.kept, manifest, overwrite=True) as staging:
        cache.write(staging.path / FILE_NAME, _parts(kept), asdict(kept.report))


def of_run(run: Run, key: str) -> Kept | None:
    """Return a run's kept text if the base wrote all of it with this key and it is undamaged, else None."""
    try:
        verify_directory(run.kept)
    except IntegrityError:
        return None
    found = load(run.kept / FILE_NAME)
    return found if found is not None and found.report.key == key else None


def heldout_of(run: Run) -> Windows | None:
    """Return the held-out kept windows of a finished run; None if its training had no kept text.

    Raises:
        IntegrityError: they are damaged, missing, or belong to another training.
    """
    wanted = read_manifest(run.adapter).inputs.get("kept")
    if wanted is None:
        return None
    verify_directory(run.kept)
    found = load(run.kept / FILE_NAME)
    if found is None or found.sha256 != wanted:
        raise IntegrityError("keep.other_text", folder=run.kept, adapter=run.adapter)
    return found.heldout
