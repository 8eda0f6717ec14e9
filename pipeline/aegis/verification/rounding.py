"""How far rounding alone may move a model's output: bounds from the dtype, the depth and the logits' own scale.

A weight or an activation rounded to a dtype is off by a random share of it, u = eps / 2 at most. Each layer adds such
an error, so that a logit is off by about δ = u √(1 + layers) s, s the spread of the logits at one position. Between
softmaxes of logits that differ by an error of deviation δ lies KL ≈ δ² / 2 (second order, Var(error) under p). A token
may change places with the likeliest one only where its logit was no further behind than both errors together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from aegis.verification.divergence import Divergence

MIN_POSITIONS = 64
"""Fewer carry no verdict."""
_MIN_FOR_P99 = 200
"""Below that the 99th percentile is the largest or second largest value."""
_MARGIN = 2.0
"""On δ, whose constant depends on how each program sums."""
_AT_P99, _AT_MAX = 2.0, 4.0
"""How much further than the mean's the error of one position in 100, and of the worst one, may be."""


@dataclass(frozen=True)
class Bounds:
    """What one comparison must stay under; None for no bound.

    Attributes:
        mean_kl, p99_kl, max_kl: in nats.
        flip_lead: the lead, in logits, from which a likeliest token must stay the likeliest.
    """

    mean_kl: float | None = None
    p99_kl: float | None = None
    max_kl: float | None = None
    flip_lead: float | None = None

    @classmethod
    def of_rounding(cls, found: Divergence, dtype: torch.dtype, layers: int) -> Bounds:
        """For two models between which lies one rounding of the weights or activations to `dtype`."""
        if found.positions < MIN_POSITIONS:
            return cls()
        delta = _MARGIN * torch.finfo(dtype).eps / 2 * math.sqrt(1 + layers) * found.scale
        return cls(
            mean_kl=delta**2 / 2,
            p99_kl=(_AT_P99 * delta) ** 2 / 2 if found.positions >= _MIN_FOR_P99 else None,
            max_kl=(_AT_MAX * delta) ** 2 / 2,
            flip_lead=2 * _AT_MAX * delta,
        )

    def broken(self, found: Divergence) -> list[str]:
        """The names of the bounds that a comparison does not keep."""
        return [
            name
            for name in ("mean_kl", "p99_kl", "max_kl", "flip_lead")
            if (bound := getattr(self, name)) is not None and getattr(found, name) > bound
        ]


NO_BOUNDS = Bounds()
