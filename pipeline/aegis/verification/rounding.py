"""Computes how far rounding alone may move a model's output: bounds from the dtype, the depth and the logits' scale.

A weight or an activation rounded to a dtype has a random relative error of at most u = eps / 2. Each layer adds such an
error, so a logit has an error of about δ = u √(1 + layers) s, where s is the spread of the logits at one position. If
two sets of logits differ by an error of deviation δ, then KL ≈ δ² / 2 between their softmaxes (second order, Var(error)
under p). Another token can become the most likely one only if its logit was behind by at most the sum of both errors.
"""

from __future__ import annotations

import math

import torch

from aegis.verification.findings import Bounds, Divergence

MIN_POSITIONS = 64
"""With fewer positions there are no bounds."""
_MIN_FOR_P99 = 200
"""With fewer positions, the 99th percentile is the largest or second largest value."""
_MARGIN = 2.0
"""A factor on δ, whose constant depends on how each program sums."""
_AT_P99, _AT_MAX = 2.0, 4.0
"""How many times the mean error one position in 100, and the worst one, may have."""

_FINISH_KL, _FINISH_FLIPS = 2e-3, 0.03
"""Ten times the mean KL of the demo's finishes, and twice the flips of the worst of them, 1.3 % of 2,048 tokens: the
rounded activations decide near-ties."""


def finish_bounds(found: Divergence) -> Bounds:
    """Return the bounds for a model with the weights of a quantized file, and that file in llama.cpp.

    Only the activations differ: llama.cpp rounds them to 8 bit in front of each quantized weight.
    """
    if found.positions < MIN_POSITIONS:
        return Bounds()
    return Bounds(mean_kl=_FINISH_KL, flips=_FINISH_FLIPS if found.positions >= _MIN_FOR_P99 else None)


def rounding_bounds(found: Divergence, dtype: torch.dtype, layers: int) -> Bounds:
    """Return the bounds for two models that differ by one rounding of weights or activations to `dtype`."""
    if found.positions < MIN_POSITIONS:
        return Bounds()
    delta = _MARGIN * torch.finfo(dtype).eps / 2 * math.sqrt(1 + layers) * found.scale
    return Bounds(
        mean_kl=delta**2 / 2,
        p99_kl=(_AT_P99 * delta) ** 2 / 2 if found.positions >= _MIN_FOR_P99 else None,
        max_kl=(_AT_MAX * delta) ** 2 / 2,
        flip_lead=2 * _AT_MAX * delta,
    )
