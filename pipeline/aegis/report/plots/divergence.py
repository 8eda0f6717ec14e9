"""Draws verify's plot: the KL of each step between neighbouring models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from aegis.report.plots.labels import label, with_readers_font


class ComparedStep(Protocol):
    """The part of a comparison of two models that the plot needs."""

    @property
    def name(self) -> str: ...

    @property
    def ok(self) -> bool: ...

    @property
    def max_kl(self) -> float | None: ...

    @property
    def found(self) -> Spread: ...


class Spread(Protocol):
    """KL in nats over the positions of a text."""

    @property
    def mean_kl(self) -> float: ...

    @property
    def p99_kl(self) -> float: ...

    @property
    def max_kl(self) -> float: ...


_FLOOR = 1e-12
"""A smaller KL is float64's rounding, and a logarithmic axis needs a lower end."""


@with_readers_font
def draw_divergence(steps: Sequence[ComparedStep], path: Path) -> None:
    """Draw the KL of each step from mean to maximum on a logarithmic axis, with the bounds on the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2 + 0.5 * len(steps)), dpi=120, layout="constrained")
    axes = figure.subplots()
    marks = (("o", "picture.mean"), ("|", "picture.percentile"), ("x", "picture.maximum"))
    for row, step in enumerate(steps):
        spread = [max(_FLOOR, value) for value in (step.found.mean_kl, step.found.p99_kl, step.found.max_kl)]
        colour = "#1a7f37" if step.ok else "#cf222e"
        axes.plot([spread[0], spread[2]], [row, row], color=colour, linewidth=2, alpha=0.35)
        for value, (marker, _) in zip(spread, marks, strict=True):
            axes.plot(value, row, marker=marker, color=colour, markersize=8, linestyle="none")
        if step.max_kl is not None:
            axes.plot([step.max_kl] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.5)
    for marker, key in marks:
        axes.plot([], [], marker=marker, color="#59636e", markersize=8, linestyle="none", label=label(key))
    if any(step.max_kl is not None for step in steps):
        axes.plot([], [], color="black", linewidth=1.5, label=label("picture.bound"))
    axes.set_xscale("log")
    axes.set_yticks(range(len(steps)), [step.name.replace("→", "to") for step in steps])
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.set_xlabel(label("picture.divergence"))
    axes.set_title(label("picture.neighbours"))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})
