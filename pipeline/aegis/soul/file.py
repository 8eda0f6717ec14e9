"""Writes, reads and checks soul.safetensors.

Tensors: `rotation` float32, (hidden_size/n, n, n) for blocks (n = 8 for so8) or (hidden_size, hidden_size) for dense,
with thought = F.linear(h, R); `alpha`, a float32 scalar. Metadata (strings): format, version, kind, hidden_size, step,
base_hash; counter_scale, "true" or "false", whether the mix is divided by 1 + g; determinant, "-1", only if R is a
reflection, which an imported soul can be. Version 1 had no counter_scale, which means "false".
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aegis.errors import IntegrityError, UsageError
from aegis.soul import rotation as so
from aegis.soul.fold import counter_scale
from aegis.soul.gate import gate
from aegis.soul.kind import Kind, kind_of

FORMAT = "aegis-soul"
VERSION = 2
FILE_NAME = "soul.safetensors"
_READ_VERSIONS = ("1", "2")
_DETERMINANT, _REFLECTED = "determinant", "-1"
_COUNTER_SCALE = "counter_scale"
_NAMES = ("rotation", "alpha")
_STEP = re.compile(r"[0-9]{1,18}")
_MAX_VALUES = 1 << 40


@dataclass(frozen=True)
class SoulRecord:
    """A soul as it is saved.

    Attributes:
        rotation: R, (blocks, n, n) float32.
        alpha: α; the gate is its sigmoid.
        step: number of optimizer steps after which it was saved.
        base_hash: sha256 of the base's weights, or "" if it is unknown.
        counter_scale: whether the mix is divided by 1 + g.
        reflection: det R = −1. Training never makes one; a reflection without this mark is refused.
    """

    rotation: Tensor
    alpha: float
    step: int
    base_hash: str
    counter_scale: bool
    reflection: bool = False

    @property
    def gate(self) -> float:
        return gate(self.alpha)

    @property
    def scale(self) -> float:
        """The factor c of the mix: 1/(1 + g), or 1 without counter-scale."""
        return counter_scale(self.gate) if self.counter_scale else 1.0

    @property
    def kind(self) -> Kind:
        kind = kind_of(*self.rotation.shape[:2])
        assert kind is not None, "no such size of blocks"
        return kind

    @property
    def hidden_size(self) -> int:
        return self.rotation.shape[0] * self.rotation.shape[1]


def check_soul(path: Path, soul: SoulRecord) -> None:
    """Make the checks that `load_soul` makes.

    Args:
        path: the file that the errors name.

    Raises:
        IntegrityError: R is not a finite rotation, `reflection` is wrong, α is not finite in float32, or the step is
            negative.
    """
    _check_rotation(path, soul.rotation, reflection=soul.reflection)
    _check_alpha(path, torch.tensor(soul.alpha, dtype=torch.float32))
    _step(path, str(soul.step))


def save_soul(path: Path, soul: SoulRecord) -> None:
    """Write `soul` to `path`.

    Raises:
        IntegrityError: see `check_soul`; nothing is written.
    """
    check_soul(path, soul)
    rotation = soul.rotation[0] if soul.kind == "dense" else soul.rotation
    tensors = {"rotation": rotation.cpu().contiguous(), "alpha": torch.tensor(soul.alpha, dtype=torch.float32)}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": soul.kind,
        "hidden_size": str(soul.hidden_size),
        "step": str(soul.step),
        "base_hash": soul.base_hash,
        _COUNTER_SCALE: "true" if soul.counter_scale else "false",
    }
    if soul.reflection:
        metadata[_DETERMINANT] = _REFLECTED
    path.write_bytes(_with_sorted_header(save(tensors, metadata)))


def is_another(path: Path) -> bool:
    """Return whether a safetensors file is whole, and says in its metadata that it is no soul."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") != FORMAT
    except (SafetensorError, OSError, ValueError):
        return False


def load_soul(path: Path) -> SoulRecord:
    """Read and check a soul.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is damaged, has another format or version, or its R is not a finite rotation.
    """
    if not path.is_file():
        raise UsageError("soul.none", path=path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            known = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            # a header may name types and sizes that torch can make no tensor of
            tensors = {name: file.get_tensor(name) for name in _NAMES if name in known and _fits(known[name])}
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError("soul.unreadable", path=path, error=str(error)) from error
    if metadata.get("format") != FORMAT or metadata.get("version") not in _READ_VERSIONS:
        raise IntegrityError(
            "soul.other_version",
            path=path,
            version=VERSION,
            format=metadata.get("format"),
            found_version=metadata.get("version"),
        )
    rotation, alpha = tensors.get("rotation"), tensors.get("alpha")
    if rotation is None or alpha is None or alpha.numel() != 1:
        raise IntegrityError("soul.incomplete", path=path)
    if rotation.ndim == 2:
        rotation = rotation.unsqueeze(0)
    if (
        rotation.ndim != 3
        or rotation.shape[1] != rotation.shape[2]
        or (kind := kind_of(*rotation.shape[:2])) is None
        or metadata.get("kind") != kind
        or metadata.get("hidden_size") != str(rotation.shape[0] * rotation.shape[1])
    ):
        raise IntegrityError("soul.shape", path=path, rotation_shape=tuple(rotation.shape))
    reflection = metadata.get(_DETERMINANT) == _REFLECTED
    _check_rotation(path, rotation, reflection=reflection)
    step = _step(path, metadata.get("step", ""))
    _check_alpha(path, alpha)
    scaled = metadata.get(_COUNTER_SCALE, "false" if metadata["version"] == "1" else "")
    if scaled not in ("true", "false"):
        raise IntegrityError("soul.counter_scale", path=path, found=scaled)
    return SoulRecord(rotation, float(alpha), step, metadata.get("base_hash", ""), scaled == "true", reflection)


def _with_sorted_header(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file: the library's order changes from process to process."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _fits(known: Any) -> bool:
    return known.get_dtype() == "F32" and 0 < math.prod(known.get_shape()) < _MAX_VALUES


def _check_alpha(path: Path, alpha: Tensor) -> None:
    if not torch.isfinite(alpha).all():
        raise IntegrityError("soul.alpha", path=path, alpha=alpha.item())


def _step(path: Path, text: str) -> int:
    if _STEP.fullmatch(text) is None:
        raise IntegrityError("soul.step", path=path, step=text)
    return int(text)


def _check_rotation(path: Path, rotation: Tensor, *, reflection: bool) -> None:
    if not torch.isfinite(rotation).all():
        raise IntegrityError("soul.not_finite", path=path)
    defect = so.orthogonality_defect(rotation.double()).abs().max().item()
    if defect > so.ORTHOGONALITY_BOUND:
        raise IntegrityError(
            "soul.not_orthogonal", path=path, defect=defect, orthogonality_bound=so.ORTHOGONALITY_BOUND
        )
    signs = so.determinant_sign(rotation)
    if reflection and (signs > 0).all():
        raise IntegrityError("soul.no_reflection", path=path)
    if not reflection and (signs < 0).any():
        raise IntegrityError("soul.reflection", path=path)
