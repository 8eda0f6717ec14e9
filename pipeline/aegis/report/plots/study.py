"""Draws the plot of a quantization study: size against KL, the files that no other beats, and the recommended one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.report.plots.labels import label, with_readers_font

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

_FLOOR = 1e-9
"""A logarithmic axis cannot show a KL of 0."""
_MARKERS = {"plain": "o", "imatrix": "^", "head-q8_0": "s", "imatrix+head-q8_0": "D"}


@dataclass(frozen=True)
class StudyPoint:
    """One file: size, mean KL in nats, whether no other file beats it in both, and whether it is recommended."""

    quant: str
    variant: str
    bytes: int
    kl: float
    front: bool
    recommended: bool


@with_readers_font
def draw_study(points: Sequence[StudyPoint], limit: float, path: Path) -> None:
    """Draw every file by size and KL, the front as a line, the rule's limit, and the recommended file.

    The colour shows the type and the shape the variant: names beside the points would overlap.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    scale, unit = (1e9, "GB") if max(point.bytes for point in points) >= 1e9 else (1e6, "MB")
    quants = list(dict.fromkeys(point.quant for point in sorted(points, key=lambda point: point.bytes)))
    colours: dict[str, Any] = {
        quant: colormaps["tab10" if len(quants) <= 10 else "tab20"](number) for number, quant in enumerate(quants)
    }

    def at(point: StudyPoint) -> tuple[float, float]:
        return point.bytes / scale, max(_FLOOR, point.kl)

    front = sorted(at(point) for point in points if point.front)
    axes.plot(*zip(*front, strict=True), color="#57606a", linewidth=1, zorder=1)
    for point in points:
        axes.scatter(*at(point), marker=_MARKERS[point.variant], color=colours[point.quant], s=42, zorder=2)
    axes.axhline(limit, color="#cf222e", linestyle=":", linewidth=1, zorder=1)
    chosen = next(point for point in points if point.recommended)
    axes.scatter(*at(chosen), s=240, facecolors="none", edgecolors="#cf222e", linewidths=2, zorder=3)

    variants = [variant for variant in _MARKERS if any(point.variant == variant for point in points)]
    handles = _handles(colours, variants, limit, chosen)
    axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    axes.set_yscale("log")
    axes.margins(x=0.06, y=0.1)
    axes.set_xlabel(label("picture.file_size", unit=unit))
    axes.set_ylabel(label("picture.kl_from_f16"))
    axes.set_title(label("picture.study"), fontsize=10)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, metadata={"Software": None})


def _handles(colours: Mapping[str, Any], variants: Sequence[str], limit: float, chosen: StudyPoint) -> Sequence[Line2D]:
    """Make the legend's lines: types by colour, variants by shape, and the other marks."""
    from matplotlib.lines import Line2D

    return [
        *(Line2D([], [], color=colour, linewidth=5, label=quant) for quant, colour in colours.items()),
        *(Line2D([], [], color="#57606a", marker=_MARKERS[name], linewidth=0, label=name) for name in variants),
        Line2D([], [], color="#57606a", linewidth=1, label=label("picture.front")),
        Line2D([], [], color="#cf222e", linewidth=1, linestyle=":", label=label("picture.limit", limit=limit)),
        Line2D(
            [], [], marker="o", markerfacecolor="none", markeredgecolor="#cf222e", markeredgewidth=2, markersize=10,
            linewidth=0, label=label("picture.recommended", quant=chosen.quant, variant=chosen.variant),
        ),
    ]  # fmt: skip
