"""Measures how far two models differ on the same tokens: KL, top-1 agreement, largest logit difference, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aegis.errors import IntegrityError
from aegis.verification.findings import Divergence

Logits = NDArray[np.float32]
_CHUNK, _CHUNK_GPU = 1 << 20, 1 << 23
"""Logits per chunk: 8 MB in float64, of which a comparison holds about six at a time. Eight times as many take twice to
four times as long on one core: they leave its cache, and each is fetched from the system anew."""
_CPU = torch.device("cpu")
_SHARPNESS = (1 / 8, 4.0)
"""Bounds of 1/T."""
_NEAR = 0.002
"""The search for the best 1/T ends when it changes by this fraction."""


@dataclass(frozen=True)
class Recording:
    """A model's logits for every position of some sequences, on disk.

    Attributes:
        logits: (positions, vocab_size) float32, memory-mapped.
        targets: (positions,) int64, the token that follows each position; −1 at the end of a sequence.
        device: where the logits are compared.
    """

    logits: Logits
    targets: NDArray[np.int64]
    device: torch.device = _CPU

    def read(self, rows: slice | NDArray[np.int64]) -> Tensor:
        """Return the logits of some positions, in float64 on the device."""
        # a copy: torch wants no memory that cannot be written
        return torch.from_numpy(np.array(self.logits[rows])).to(self.device).double()

    @property
    def scored(self) -> int:
        """Positions that have a following token."""
        return int((self.targets >= 0).sum())


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """Make a directory for recordings, or for export's f16 file until verify is done, while the block runs.

    2,048 positions take 263 MB with a vocabulary of 32,064, and 2.1 GB with one of 262,144. The directory is next to
    `beside`, because the system's folder for temporary files may be in memory. Its name is one that publishing removes
    if this process is killed.
    """
    with TemporaryDirectory(prefix=f".{beside.name}.staging-", dir=beside.parent, ignore_cleanup_errors=True) as found:
        yield Path(found)


def record(
    path: Path, outputs: Iterable[Logits], sequences: Sequence[Sequence[int]], device: torch.device = _CPU
) -> Recording:
    """Write a model's logits, one array per sequence, to `path` as plain float32 rows.

    Args:
        device: where they will be compared.

    Raises:
        IntegrityError: the model returned NaN or Inf, or another number of positions.
    """
    targets = np.concatenate([np.asarray([*sequence[1:], -1], np.int64) for sequence in sequences])
    width = 0
    # written, not mapped: on a full disk a write raises, but a store into a mapped page ends the process
    with path.open("wb") as file:
        for sequence, logits in zip(sequences, outputs, strict=True):
            if len(logits) != len(sequence) or not np.isfinite(logits).all():
                raise IntegrityError("divergence.not_finite")
            width = logits.shape[1]
            file.write(np.ascontiguousarray(logits, np.float32).data)
    return Recording(np.memmap(path, np.float32, "r", shape=(len(targets), width)), targets, device)


def compare(reference: Recording, model: Recording) -> Divergence:
    """Compare two recordings of the same sequences, in float64.

    Raises:
        IntegrityError: their vocabularies differ.
    """
    if reference.logits.shape != model.logits.shape:
        raise IntegrityError(
            "divergence.vocabularies",
            reference_tokens=reference.logits.shape[1],
            model_tokens=model.logits.shape[1],
        )
    kl, agreed, delta, spread, lead = [], 0, 0.0, 0.0, 0.0
    for rows in _slices(reference):
        one, other = reference.read(rows), model.read(rows)
        delta = max(delta, float((one - other).abs().max()))
        spread += float(one.var(-1, correction=0).sum())
        theirs = other.argmax(-1)
        agreed += int((one.argmax(-1) == theirs).sum())
        behind = one.amax(-1) - one.gather(-1, theirs[:, None])[:, 0]
        lead = max(lead, float(behind.max()))
        kl.append(_kl(one, other))
    # rounding can leave a KL of −1e-17
    every = torch.cat(kl).clamp_min(0.0).cpu()
    return Divergence(
        float(every.mean()),
        float(np.quantile(every.numpy(), 0.99)),
        float(every.max()),
        agreed / len(every),
        delta,
        len(every),
        math.sqrt(spread / len(every)),
        lead,
    )


def mean_kl(reference: Recording, model: Recording, temperatures: tuple[float, float]) -> float:
    """Return the mean KL(p‖q) in nats, with the logits of each model divided by its own temperature."""
    total = 0.0
    for rows in _slices(reference):
        one, other = reference.read(rows) / temperatures[0], model.read(rows) / temperatures[1]
        total += float(_kl(one, other).sum())
    return max(total / len(reference.targets), 0.0)


def perplexity(model: Recording, temperature: float = 1.0) -> float:
    """Return exp of the mean cross-entropy of the following tokens, with the logits divided by `temperature`."""
    total = 0.0
    for logits, targets in _scored(model):
        log_p = (logits / temperature).log_softmax(-1)
        total -= float(log_p.gather(-1, targets[:, None]).sum())
    return math.exp(total / model.scored)


def best_temperature(model: Recording) -> float:
    """Find the temperature T with the lowest perplexity, by Newton's method in β = 1/T, with bisection beside it.

    The cross-entropy log Σ exp(βz) − βz_y is convex in β: its slope is E[z] − z_y, its curvature Var[z], both under the
    model's probabilities at β. So one pass over the logits gives both, and the slope's sign bounds the minimum.
    """
    low, high = _SHARPNESS
    beta = 1.0
    while True:
        slope, curvature = 0.0, 0.0
        for logits, targets in _scored(model):
            values = logits - logits.gather(-1, targets[:, None])
            p = (beta * values).softmax(-1)
            mean = (p * values).sum(-1)
            slope += float(mean.sum())
            curvature += float(((p * values.square()).sum(-1) - mean.square()).sum())
        low, high = (low, beta) if slope > 0 else (beta, high)
        wanted = beta - slope / curvature if curvature > 0 else low
        found = wanted if low < wanted < high else math.sqrt(low * high)
        if abs(math.log(found / beta)) < _NEAR:
            return 1 / found
        beta = found


def _kl(one: Tensor, other: Tensor) -> Tensor:
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _scored(model: Recording) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of all positions that have a following token, in chunks, and that token."""
    for rows in _slices(model):
        positions = np.arange(len(model.targets))[rows]
        positions = positions[model.targets[positions] >= 0]
        yield model.read(positions), torch.from_numpy(model.targets[positions]).to(model.device)


def _slices(recording: Recording) -> Iterator[slice]:
    positions, vocab_size = recording.logits.shape
    rows = max(1, (_CHUNK if recording.device.type == "cpu" else _CHUNK_GPU) // vocab_size)
    for start in range(0, positions, rows):
        yield slice(start, start + rows)
