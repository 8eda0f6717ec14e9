"""Measures how far two models differ on the same tokens: KL, top-1 agreement, largest logit difference, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from aegis.errors import IntegrityError

Logits = NDArray[np.float32]
_CHUNK = 1 << 23
"""Logits per chunk: 67 MB in float64; a comparison holds about six such arrays at a time."""
_TEMPERATURES = (0.25, 8.0)


@dataclass(frozen=True)
class Recording:
    """A model's logits for every position of some sequences, on disk.

    Attributes:
        logits: (positions, vocab_size) float32, memory-mapped.
        targets: (positions,) int64, the token that follows each position; −1 at the end of a sequence.
    """

    logits: Logits
    targets: NDArray[np.int64]

    @property
    def scored(self) -> int:
        """Positions that have a following token."""
        return int((self.targets >= 0).sum())


@dataclass(frozen=True)
class Divergence:
    """The difference between a reference p and a model q over all positions; KL is KL(p‖q) in nats.

    Attributes:
        top1: fraction of positions with the same most likely token.
        max_delta: the largest difference between two logits.
        positions: number of compared positions.
        scale: the standard deviation of the reference's logits over the vocabulary, root mean square over positions.
        flip_lead: the largest lead, in logits, of the reference's most likely token over the model's, where the two
            differ.
    """

    mean_kl: float
    p99_kl: float
    max_kl: float
    top1: float
    max_delta: float
    positions: int = 0
    scale: float = 0.0
    flip_lead: float = 0.0

    @property
    def flips(self) -> float:
        """Fraction of positions with another most likely token."""
        return 1 - self.top1


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """Make a directory for recordings, or for export's f16 file until verify is done, while the block runs.

    2,048 positions take 263 MB with a vocabulary of 32,064, and 2.1 GB with one of 262,144. The directory is next to
    `beside`, because the system's folder for temporary files may be in memory. Its name is one that publishing removes
    if this process is killed.
    """
    with TemporaryDirectory(prefix=f".{beside.name}.staging-", dir=beside.parent, ignore_cleanup_errors=True) as found:
        yield Path(found)


def record(path: Path, outputs: Iterable[Logits], sequences: Sequence[Sequence[int]]) -> Recording:
    """Write a model's logits, one array per sequence, to `path` as plain float32 rows.

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
    return Recording(np.memmap(path, np.float32, "r", shape=(len(targets), width)), targets)


def compare(reference: Recording, model: Recording) -> Divergence:
    """Compare two recordings of the same sequences, in float64.

    Raises:
        IntegrityError: their vocabularies differ.
    """
    if reference.logits.shape != model.logits.shape:
        raise IntegrityError("divergence.vocabularies", shape=reference.logits.shape[1], shape_2=model.logits.shape[1])
    kl, agreed, delta, spread, lead = [], 0, 0.0, 0.0, 0.0
    for rows in _slices(reference):
        one, other = reference.logits[rows].astype(np.float64), model.logits[rows].astype(np.float64)
        delta = max(delta, float(np.abs(one - other).max()))
        same = one.argmax(-1) == other.argmax(-1)
        agreed += int(same.sum())
        spread += float(one.var(-1).sum())
        if not same.all():
            behind = one[~same].max(-1) - np.take_along_axis(one[~same], other[~same].argmax(-1)[:, None], -1)[:, 0]
            lead = max(lead, float(behind.max()))
        p, q = log_softmax(one), log_softmax(other)
        kl.append((np.exp(p) * (p - q)).sum(-1))
    # rounding can leave a KL of −1e-17
    every = np.maximum(np.concatenate(kl), 0.0)
    return Divergence(
        float(every.mean()),
        float(np.quantile(every, 0.99)),
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
        p, q = (
            log_softmax(recording.logits[rows].astype(np.float64) / temperature)
            for recording, temperature in zip((reference, model), temperatures, strict=True)
        )
        total += float((np.exp(p) * (p - q)).sum())
    return max(total / len(reference.targets), 0.0)


def perplexity(model: Recording, temperature: float = 1.0) -> float:
    """Return exp of the mean cross-entropy of the following tokens, with the logits divided by `temperature`."""
    total = 0.0
    for rows in _slices(model):
        targets = model.targets[rows]
        scored = targets >= 0
        log_p = log_softmax(model.logits[rows][scored].astype(np.float64) / temperature)
        total -= float(log_p[np.arange(len(log_p)), targets[scored]].sum())
    return math.exp(total / model.scored)


def best_temperature(model: Recording) -> float:
    """Find the temperature with the lowest perplexity, by golden-section search in its logarithm.

    The cross-entropy is convex in 1/T (a log-sum-exp minus a linear term), so the search finds the minimum.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = (math.log(bound) for bound in _TEMPERATURES)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = perplexity(model, math.exp(left)), perplexity(model, math.exp(right))
    while high - low > 0.01:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = perplexity(model, math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = perplexity(model, math.exp(right))
    return math.exp((low + high) / 2)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    normed: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normed


def _slices(recording: Recording) -> Iterator[slice]:
    positions, vocab_size = recording.logits.shape
    rows = max(1, _CHUNK // vocab_size)
    for start in range(0, positions, rows):
        yield slice(start, start + rows)
