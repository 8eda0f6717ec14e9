"""import-soul: converts a soul.pt of the original pipeline to a soul.safetensors for merge.

The original saved, with torch.save, {"alpha": α, "so8_rotation": the state of parametrizations.orthogonal(nn.Linear(d,
d, bias=False)), "step": …}. That state holds X ("original") and Q₀ ("base"), and R = Q₀ exp(A) with A = tril(X) −
tril(X)ᵀ (torch/nn/utils/parametrizations.py, `_Orthogonal.forward`, use_trivialization=True).

Q₀ comes from the QR of a random matrix: for about half of the seeds its determinant is −1, and R is a reflection. Such
a soul was trained as a reflection; the file records this, and the soul is folded without a change.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from aegis import progress
from aegis.errors import IntegrityError, UsageError, first_line
from aegis.limits import SOUL_PICKLE_BYTES, TooLarge
from aegis.messages import phrase
from aegis.soul import rotation as so
from aegis.soul.file import SoulRecord, check_soul, save_soul

_STEPS = 10**18
_ORIGINAL, _BASE = "parametrizations.weight.original", "parametrizations.weight.0.base"


@dataclass(frozen=True)
class ImportReport:
    """The values of the imported soul."""

    out: Path
    hidden_size: int
    step: int
    alpha: float
    gate: float
    reflection: bool


def import_soul(source: Path, out: Path, *, overwrite: bool = False) -> ImportReport:
    """Read the original's soul.pt and write soul.safetensors, which appears only when it is complete.

    Args:
        source: a file of torch.save. Only tensors and plain values are read from it; no code in it is run.
        out: the file to write.
        overwrite: replace an existing `out`.

    Raises:
        UsageError: there is no such file, or `out` exists.
        IntegrityError: it is not a pickle of tensors only, not a soul, or its R is not orthogonal.
    """
    if not source.is_file():
        raise UsageError("import_soul.no_soul", source=source)
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError("import_soul.exists", out=out)
    state = _read(source)
    with progress.task(phrase("import_soul.rebuilding")):
        rotation = _rebuilt(source, state["so8_rotation"])
        reflection = bool((so.determinant_sign(rotation) < 0).any())
    soul = SoulRecord(rotation.float(), _alpha(source, state), _step(source, state), "", False, reflection)
    check_soul(source, soul)
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_soul(part, soul)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return ImportReport(out, soul.hidden_size, soul.step, soul.alpha, soul.gate, reflection)


def _read(source: Path) -> Mapping[str, Any]:
    try:
        _refuse_bomb(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can raise anything
        raise IntegrityError(
            "import_soul.unreadable",
            source=source,
            hint=first_line(error),
        ) from None
    if not isinstance(state, Mapping) or not {"alpha", "so8_rotation", "step"} <= state.keys():
        raise IntegrityError("import_soul.not_a_soul", source=source)
    return state


def _refuse_bomb(source: Path) -> None:
    """Refuse a compressed archive or a large pickle: torch.save compresses nothing and writes one short pickle.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: torch.save did not write this file.
    """
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
    pickles = sum(member.file_size for member in members if member.filename.endswith(".pkl"))
    if sum(member.file_size for member in members) > source.stat().st_size or pickles > SOUL_PICKLE_BYTES:
        raise TooLarge("zip: larger unpacked")


def _rebuilt(source: Path, state: Any) -> Tensor:
    """Compute R, (1, d, d) float64. Half precision would break it, and torch's own forward keeps the input's dtype."""
    if not isinstance(state, Mapping) or set(state) != {_ORIGINAL, _BASE}:
        raise IntegrityError("import_soul.no_rotation", source=source)
    original, base = state[_ORIGINAL], state[_BASE]
    for name, tensor in ((_ORIGINAL, original), (_BASE, base)):
        # a few bytes can claim any shape: with strides of zero, or without data
        if not _is_plain(tensor) or tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
            raise IntegrityError("import_soul.not_square", source=source, name=name)
        if not tensor.is_floating_point() or tensor.nbytes > source.stat().st_size:
            raise IntegrityError(
                "import_soul.dtype", source=source, name=name, dtype=tensor.dtype, tensor_shape=tuple(tensor.shape)
            )
    if original.shape != base.shape or not original.numel():
        raise IntegrityError(
            "import_soul.shapes",
            source=source,
            original=_ORIGINAL,
            original_shape=tuple(original.shape),
            base=_BASE,
            base_shape=tuple(base.shape),
        )
    lower = original.double().tril()
    rotation: Tensor = base.double() @ torch.linalg.matrix_exp(lower - lower.mT)
    return rotation.unsqueeze(0)


def _alpha(source: Path, state: Mapping[str, Any]) -> float:
    alpha = state["alpha"]
    if _is_plain(alpha) and alpha.numel() == 1:
        alpha = alpha.item()
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not abs(alpha) <= torch.finfo(torch.float32).max:
        raise IntegrityError("import_soul.alpha", source=source, alpha=alpha)
    return float(alpha)


def _step(source: Path, state: Mapping[str, Any]) -> int:
    step = state["step"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < _STEPS:
        raise IntegrityError("import_soul.step", source=source, step=step)
    return step


def _is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor with data: not sparse, quantized, nested or on the meta device."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    )
