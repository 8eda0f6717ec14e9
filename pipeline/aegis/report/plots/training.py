"""Draws the plots of a training, readable at the size of a README.

They are drawn from the rows of metrics.jsonl and from R before and after: the same training gives the same bytes. A row
of an older version that lacks a number is left out of that number's plot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aegis.report.plots.labels import label, with_readers_font
from aegis.soul.angles import QUANTILES
from aegis.soul.gate import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
Angles = NDArray[np.float64]

_BLUE, _RED, _GREY = "#0969da", "#cf222e", "#6e7781"
_PHASES = {
    Phase.STABLE.value: ("picture.stable", "#ddf4ff"),
    Phase.TRANSITIONING.value: ("picture.transitioning", "#fff8c5"),
    Phase.GOLDEN.value: ("picture.golden", "#dafbe1"),
}
_SMOOTHING = 0.6
_MAX_VALUE = 1e300


PICTURES = ("training.png", "phase.png", "rotation.png", "spectrum.png")


def draw_all(rows: Rows, start: Angles, end: Angles, gate: float, folder: Path) -> None:
    """Draw PICTURES into a folder.

    Args:
        rows: the rows of metrics.jsonl.
        start, end: the angles of R before and after training, in radians.
        gate: g after training.
    """
    training, phase, rotation, spectrum = (folder / name for name in PICTURES)
    draw_training(rows, training)
    draw_phase(rows, phase)
    draw_rotation(rows, start, end, rotation)
    draw_spectrum(end, gate, spectrum)


@with_readers_font
def draw_training(rows: Rows, path: Path) -> None:
    """Draw training.png: the loss of each logging step, also smoothed, and the held-out loss.

    A second panel has KL(base ‖ trained) on kept text, if there is any.
    """
    kept_steps, kept = _column(rows, "keep_kl")
    figure, panels = _figure(2 if len(kept_steps) else 1)
    axes, *beside = np.ravel(panels)
    steps, losses = _column(rows, "task_loss")
    axes.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=1, label=label("picture.loss"))
    axes.plot(steps, _smoothed(losses), color=_BLUE, linewidth=2, label=label("picture.smoothed"))
    steps, heldout = _column(rows, "heldout_loss")
    if len(steps):
        axes.plot(steps, heldout, color=_RED, marker="o", linewidth=2, label=label("picture.heldout"))
        axes.annotate(f"{heldout[-1]:.3f}", (steps[-1], heldout[-1]), **_NOTE, color=_RED)
        axes.margins(x=_NOTE_ROOM)
    axes.set_ylabel(label("picture.cross_entropy"))
    axes.set_title(label("picture.training"))
    axes.legend(frameon=False)
    for right in beside:
        right.plot(kept_steps, kept, color=_BLUE, linewidth=2)
        right.annotate(f"{kept[-1]:.3f}", (kept_steps[-1], kept[-1]), **_NOTE, color=_BLUE)
        right.margins(x=_NOTE_ROOM)
        right.set_ylim(bottom=0)
        right.set_ylabel(label("picture.kl"))
        right.set_title(label("picture.kept"))
    _save(figure, path)


@with_readers_font
def draw_phase(rows: Rows, path: Path) -> None:
    """Draw phase.png: α and g over the steps, on the colours of the three phases."""
    figure, axes = _figure()
    steps, alphas = _column(rows, "alpha")
    named = [(row["step"], row["phase"]) for row in rows if str(row.get("phase")) in _PHASES]
    edges = [0, *(after for (_, old), (after, new) in itertools.pairwise(named) if old != new)]
    changes = [name for number, (_, name) in enumerate(named) if number == 0 or named[number - 1][1] != name]
    seen = set[str]()
    for start, stop, name in zip(edges, [*edges[1:], named[-1][0] if named else 0], changes, strict=False):
        key, colour = _PHASES[name]
        axes.axvspan(start, stop, color=colour, linewidth=0, label=None if name in seen else label(key))
        seen.add(name)
    axes.plot(steps, alphas, color=_BLUE, linewidth=2, label=label("picture.alpha"))
    axes.set_ylabel("α", color=_BLUE)
    right = axes.twinx()
    steps, gates = _column(rows, "gate")
    right.plot(steps, gates, color=_RED, linewidth=2, linestyle="--", label=label("picture.gate"))
    right.set_ylabel("g", color=_RED)
    right.set_ylim(0, 1)
    right.spines["top"].set_visible(False)
    axes.set_title(label("picture.phases"))
    handles, labels = (
        a + b for a, b in zip(axes.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True)
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    _save(figure, path)


@with_readers_font
def draw_rotation(rows: Rows, start: Angles, end: Angles, path: Path) -> None:
    """Draw rotation.png: how far R turned from its start over the steps, and all of R's angles before and after.

    Args:
        start, end: the angles of R before and after training, in radians.
    """
    figure, (left, right) = _figure(2)
    known = [(row["step"], row["turned_degrees"]) for row in rows if _are_quantiles(row.get("turned_degrees"))]
    steps = [step for step, _ in known]
    bands = np.array([values for _, values in known], dtype=np.float64).reshape(-1, len(QUANTILES))
    shades = ((0, 6, 0.15, "picture.all"), (1, 5, 0.25, "picture.most"), (2, 4, 0.4, "picture.half"))
    for low, high, alpha, key in shades:
        left.fill_between(steps, bands[:, low], bands[:, high], color=_BLUE, alpha=alpha, linewidth=0, label=label(key))
    left.plot(steps, bands[:, 3], color=_BLUE, linewidth=2, label=label("picture.median"))
    left.set_ylim(bottom=0)
    left.set_xlabel(label("picture.step"))
    left.set_ylabel(label("picture.turned"))
    left.set_title(label("picture.learned"))
    left.legend(frameon=False, fontsize=9, loc="upper left")
    edges = np.linspace(0, 180, 37)
    right.hist(np.degrees(start), edges, color=_GREY, alpha=0.5, label=label("picture.before"))
    right.hist(np.degrees(end), edges, color=_BLUE, histtype="step", linewidth=2, label=label("picture.after"))
    right.set_xlabel(label("picture.angle"))
    right.set_ylabel(label("picture.planes"))
    right.set_title(label("picture.angles"))
    right.legend(frameon=False, fontsize=9)
    _save(figure, path)


@with_readers_font
def draw_spectrum(angles: Angles, gate: float, path: Path) -> None:
    """Draw spectrum.png: the eigenvalues 1 + g·e^{iθ} of I + gR, and its singular values, their absolute values.

    Args:
        angles: the angles θ of R, in radians.
        gate: g.
    """
    figure, (left, right) = _figure(2)
    values = 1 + gate * np.exp(1j * angles)
    circle = 1 + gate * np.exp(1j * np.linspace(0, math.tau, 400))
    left.plot(circle.real, circle.imag, color=_GREY, linewidth=1)
    for sign in (1, -1):
        left.plot(values.real, sign * values.imag, ".", color=_BLUE, markersize=4, alpha=0.5)
    left.plot(1, 0, "+", color="black", markersize=9)
    left.axhline(0, color=_GREY, linewidth=0.5)
    left.axvline(0, color=_GREY, linewidth=0.5)
    left.set_aspect("equal", adjustable="datalim")
    left.set_xlabel(label("picture.real"))
    left.set_ylabel(label("picture.imaginary"))
    left.set_title(label("picture.eigenvalues", gate=gate))
    right.hist(np.abs(values), np.linspace(1 - gate, 1 + gate, 31), color=_BLUE, alpha=0.8)
    right.axvline(1, color="black", linewidth=1.5, linestyle=":", label=label("picture.length_kept"))
    right.set_xlabel(label("picture.singular_value"))
    right.set_ylabel(label("picture.planes"))
    right.set_title(label("picture.singular_values", low=1 - gate, high=1 + gate))
    right.legend(frameon=False, fontsize=9)
    _save(figure, path)


_NOTE: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, 0), "ha": "left", "va": "center", "fontsize": 9}
"""A value stands to the right of its curve's end, where no curve is."""
_NOTE_ROOM = 0.12
"""The part of the width that is left free at each side."""


def _figure(columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.ravel(axes):
        _plain(one)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_xlabel(label("picture.step"))


def _column(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    known = [(row["step"], float(row[name])) for row in rows if _is_number(row.get(name))]
    return [step for step, _ in known], [value for _, value in known]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and -_MAX_VALUE < value < _MAX_VALUE


def _are_quantiles(value: object) -> bool:
    return isinstance(value, list) and len(value) == len(QUANTILES) and all(map(_is_number, value))


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return an exponential moving average; each mean is over the values so far."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        means.append(total / weight)
    return means


def _save(figure: Figure, path: Path) -> None:
    # without matplotlib's version in the file, the same numbers give the same bytes
    figure.savefig(path, metadata={"Software": None})
