"""Compares two GGUF files key by key, tensor by tensor and byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aegis import progress
from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile, TensorInfo, Value
from aegis.messages import Bilingual, bilingual, phrase
from aegis.verification.run_checks import Checks

SLAB_BYTES = 8 << 20
_SHOWN = 5
_MAX_VALUE_CHARS = 60


@dataclass(frozen=True)
class Slab:
    """Rows [start, stop) of one tensor."""

    info: TensorInfo
    start: int
    stop: int

    @classmethod
    def cut(cls, info: TensorInfo, slab_bytes: int = SLAB_BYTES) -> Iterator[Slab]:
        """Divide a tensor into slabs of about `slab_bytes`."""
        step = max(1, slab_bytes * info.rows // max(1, info.size_bytes))
        for start in range(0, info.rows, step):
            yield cls(info, start, min(start + step, info.rows))

    @property
    def bytes(self) -> int:
        return self.info.size_bytes // self.info.rows * (self.stop - self.start)


def check_same(checks: Checks, found: Path, reference: Path) -> None:
    """Check that the run's f16 GGUF equals, byte for byte, what the converter writes from the merged folder.

    The converter's output is a pure function of the folder, the name and its own version; it has no date and no path.
    Nothing is read if both are the same file, which this process has converted.
    """
    with checks.check(bilingual("equality.same"), "convert") as detail:
        if found != reference:
            _refuse_other_file(found, reference)
        detail(bilingual("equality.bytes", count=found.stat().st_size))


def _refuse_other_file(found: Path, reference: Path) -> None:
    with GgufFile(found) as one, GgufFile(reference) as two:
        refuse_other_keys(one, two)
        refuse_other_tensors(one, two)
        total = sum(info.size_bytes for info in two.tensors.values())
        with progress.task(phrase("equality.comparing", name=found.name), total, "B") as bar:
            for name in two.tensors:
                for slab in Slab.cut(two.tensors[name]):
                    refuse_other_rows(one, two, slab)
                    bar.advance(slab.bytes)
    # what remains: types of numbers, the order of keys, and the gaps between tensors
    if not _same_content(found, reference):
        raise IntegrityError("equality.header", path=found)


def refuse_other_keys(found: GgufFile, reference: GgufFile, changed: dict[str, Value] | None = None) -> None:
    """Refuse metadata that differs from the reference's.

    Args:
        changed: keys with another value than the reference's, and that value.

    Raises:
        IntegrityError: it differs; the message names the first keys.
    """
    wanted = {**reference.metadata, **(changed or {})}
    odd = [key for key in wanted.keys() | found.metadata.keys() if not _same(found.metadata.get(key), wanted.get(key))]
    if odd:
        lines = [_difference(key, found.metadata.get(key), wanted.get(key)) for key in sorted(odd)[:_SHOWN]]
        raise IntegrityError("equality.keys", path=found.path, count=len(odd), wrong=Bilingual.joined("\n", lines))


def refuse_other_tensors(found: GgufFile, reference: GgufFile, types: dict[str, str] | None = None) -> None:
    """Refuse a file whose tensors have other names, shapes or types than the reference's.

    Args:
        types: the expected type of each tensor; the reference's if None.

    Raises:
        IntegrityError: there is one; the message names the first.
    """
    if odd := sorted(found.tensors.keys() ^ reference.tensors.keys()):
        key = "equality.tensor_lost" if odd[0] in reference.tensors else "equality.tensor_extra"
        raise IntegrityError(key, path=found.path, name=odd[0], count=len(odd))
    wrong = []
    for name, info in reference.tensors.items():
        wanted = (info.shape, info.type if types is None else types.get(name))
        have = (found.tensors[name].shape, found.tensors[name].type)
        if have != wanted:
            wrong.append(bilingual("equality.kind", name=name, found=have[1], wanted=wanted[1]))
    if wrong:
        lines = Bilingual.joined("\n", wrong[:_SHOWN])
        raise IntegrityError("equality.kinds", path=found.path, count=len(wrong), wrong=lines)


def refuse_other_rows(found: GgufFile, reference: GgufFile, slab: Slab) -> None:
    """Refuse rows that differ from the reference's in any byte.

    Raises:
        IntegrityError: they differ; the message names the tensor and the row.
    """
    one, two = (file.raw_rows(slab.info.name, slab.start, slab.stop) for file in (found, reference))
    if not np.array_equal(one, two):
        row = slab.start + int((one != two).any(-1).argmax())
        raise IntegrityError("equality.row", path=found.path, name=slab.info.name, row=row)


def _same(one: Value | None, other: Value | None) -> bool:
    # in Python True equals 1, and NaN does not equal itself
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


def _difference(key: str, found: Value | None, wanted: Value | None) -> Bilingual:
    if isinstance(found, list) and isinstance(wanted, list):
        different = [index for index, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]]
        if not different:
            return bilingual("equality.length", key=key, found=len(found), wanted=len(wanted))
        at = different[0]
        return bilingual("equality.item", key=key, place=at, found=_shown(found[at]), wanted=_shown(wanted[at]))
    missing = bilingual("equality.missing")
    return bilingual(
        "equality.value",
        key=key,
        found=missing if found is None else _shown(found),
        wanted=missing if wanted is None else _shown(wanted),
    )


def _shown(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"


def _same_content(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with GgufFile(other) as file:
        header = min((info.offset_bytes for info in file.tensors.values()), default=other.stat().st_size)
    with one.open("rb") as first, other.open("rb") as second:
        return first.read(header) == second.read(header)
