"""The picture of a quantization study: size against KL, the files that no other beats, and the recommended one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FLOOR = 1e-9
"""A logarithmic axis has no place for a KL of 0."""
_MARKERS = {"plain": "o", "imatrix": "^", "head-q8_0": "s", "imatrix+head-q8_0": "D"}
_COLOURS = {"plain": "#0969da", "imatrix": "#1a7f37", "head-q8_0": "#bf8700", "imatrix+head-q8_0": "#8250df"}


@dataclass(frozen=True)
class StudyPoint:
    """One file: its size, its mean KL in nats, and whether no other beats it in both."""

    quant: str
    variant: str
    bytes: int
    kl: float
    front: bool
    recommended: bool


def draw_study(points: Sequence[StudyPoint], limit: float, path: Path) -> None:
    """Draw every file by size and KL, the front as a line, the limit of the rule, and the one that it chose."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    scale, unit = (1e9, "GB") if max(point.bytes for point in points) >= 1e9 else (1e6, "MB")
    front = sorted((point.bytes / scale, max(_FLOOR, point.kl)) for point in points if point.front)
    axes.plot(*zip(*front, strict=True), color="#57606a", linewidth=1, zorder=1, label="no file beats these")
    for variant in dict.fromkeys(point.variant for point in points):
        own = [point for point in points if point.variant == variant]
        axes.scatter(
            [point.bytes / scale for point in own],
            [max(_FLOOR, point.kl) for point in own],
            marker=_MARKERS[variant],
            color=_COLOURS[variant],
            s=45,
            zorder=2,
            label=variant,
        )
    for quant in dict.fromkeys(point.quant for point in points):
        # one name a type, over the highest of its files
        top = max((point for point in points if point.quant == quant), key=lambda point: point.kl)
        place = (top.bytes / scale, max(_FLOOR, top.kl))
        axes.annotate(quant, place, xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)
    for point in points:
        if point.recommended:
            axes.scatter(
                point.bytes / scale,
                max(_FLOOR, point.kl),
                s=260,
                facecolors="none",
                edgecolors="#cf222e",
                linewidths=2,
                zorder=3,
                label=f"recommended: {point.quant}, {point.variant}",
            )
    axes.axhline(limit, color="#cf222e", linestyle=":", linewidth=1, zorder=1, label=f"limit {limit:.3g} nats")
    axes.set_yscale("log")
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel(f"size of the file, {unit}")
    axes.set_ylabel("mean KL from f16, nats per token")
    axes.set_title("Quantizations on your own text: lower and further left is better", fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="upper right")
    figure.savefig(path, metadata={"Software": None})
