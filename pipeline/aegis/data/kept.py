"""Kept text: windows on which a training keeps to its base, the last eighth of them for judging only.

All tokens of a kept text count but its first, which nothing comes before.
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
"""One window in so many is never trained on."""
MIN_TOKENS = 8
"""A text or a rest of a window below this teaches nothing worth a place."""


@dataclass(frozen=True)
class KeptReport:
    """What kept text is made of, in numbers for people.

    Attributes:
        source: "written" by the base, "data" of the user's, "both".
        windows, heldout_windows: for training, and never trained on.
        tokens: of both.
        texts: that the base wrote and that were looked at; 0 if it wrote none.
        ended: of these, how many the base ended itself.
        looping: how many ran into a repetition, which was cut off.
        too_short: how many were left out as too short, or written before.
        precision: "16bit" or "4bit", what the base wrote with; empty if it wrote nothing.
        key: hash of what the writing depended on, but for device and precision; empty if not all is written.
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
    """Windows to keep to, and those that judge it."""

    train: Windows
    heldout: Windows
    report: KeptReport

    @property
    def sha256(self) -> str:
        """A hash of every token and of where texts begin."""
        digest = hashlib.sha256()
        for part in (self.train, self.heldout):
            for array in (part.first_piece, part.first_token):
                digest.update(array.astype("<i8").tobytes())
            digest.update(part.tokens.read(0, len(part.tokens)).tobytes())
        return digest.hexdigest()


def split(windows: Windows, report: KeptReport) -> Kept:
    """Set the last eighth apart, one window at least; there must be two."""
    heldout = max(1, len(windows) // _HELDOUT_PART)
    train = len(windows) - heldout
    assert train > 0, "one window is nothing to split"
    report = replace(report, windows=train, heldout_windows=heldout, tokens=len(windows.tokens))
    return Kept(select(windows, range(train)), select(windows, range(train, len(windows))), report)


def fill(texts: Sequence[NDArray[np.int32]], count: int, max_length: int, pad_token_id: int) -> Windows:
    """Put texts one after the other into at most `count` windows; the end of one that does not fit is lost."""
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
    """Tokens of text that `fill` would still have room for."""
    used = [sum(window) for window in _layout(lengths, count, max_length)]
    room = max_length - used[-1] if used else 0
    return (count - len(used)) * max_length + (room if room >= _room_wanted(max_length) else 0)


def _layout(lengths: Sequence[int], count: int, max_length: int) -> list[list[int]]:
    """How many tokens of each text go into each window, in order."""
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
    """The windows of these numbers, in this order."""
    return joined([(windows, number) for number in numbers])


def joined(chosen: Sequence[tuple[Windows, int]]) -> Windows:
    """Windows out of several sets of one length, in this order; there must be one."""
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
    """Write kept text to a file, whole or not at all.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    cache.store(path, _parts(kept), asdict(kept.report))


def _parts(kept: Kept) -> dict[str, Windows]:
    return {"train": kept.train, "heldout": kept.heldout}


def load(path: Path) -> Kept | None:
    """Read what `store` wrote; None when the file is absent, and when it is damaged, which removes it."""
    found = cache.load(path)
    if found is None:
        return None
    windows, report = found
    return Kept(windows["train"], windows["heldout"], KeptReport(**report))


def publish(run: Run, kept: Kept, manifest: Manifest) -> None:
    """Put kept text into a run, so that later stages have it wherever the run goes; nothing if it is there.

    Raises:
        UsageError, EnvironmentFault: as `publishing`.
    """
    if run.kept.is_dir() and finished(run.kept, manifest) is not None:
        return
    with publishing(run.kept, manifest, overwrite=True) as staging:
        cache.write(staging.path / FILE_NAME, _parts(kept), asdict(kept.report))


def of_run(run: Run, key: str) -> Kept | None:
    """The text that a run holds, if the base wrote all of it under this key, and it is whole."""
    try:
        verify_directory(run.kept)
    except IntegrityError:
        return None
    found = load(run.kept / FILE_NAME)
    return found if found is not None and found.report.key == key else None


def heldout_of(run: Run) -> Windows | None:
    """The kept windows that a finished run's training never saw; None where it kept nothing.

    Raises:
        IntegrityError: they are damaged, missing or another training's.
    """
    wanted = read_manifest(run.adapter).inputs.get("kept")
    if wanted is None:
        return None
    verify_directory(run.kept)
    found = load(run.kept / FILE_NAME)
    if found is None or found.sha256 != wanted:
        raise IntegrityError("keep.other_text", folder=run.kept, adapter=run.adapter)
    return found.heldout
