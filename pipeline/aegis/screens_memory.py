"""The memory while training, by part: as it was measured, and as plan works it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aegis.cells import cells, folded, left, right
from aegis.messages import phrase

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.stages.plan import PlanReport
    from aegis.training.memory import MemoryParts

_PARTS = {
    "base": "memory.base",
    "weights": "memory.weights",
    "adapter": "memory.adapter",
    "soul": "memory.soul",
    "gradients": "memory.gradients",
    "optimizer": "memory.optimizer",
    "activations": "memory.activations",
    "head_and_loss": "memory.head_and_loss",
    "workspace": "memory.workspace",
    "peak": "memory.peak",
}
"""What the fields of MemoryParts and Estimate are called."""

_BESIDES_BYTES = 1 << 30
"""What CUDA, or Python, takes beside what training asks for."""


def measured(memory: MemoryParts) -> list[str]:
    """What train --dry-run measured, a line a part."""
    parts = [(phrase(_PARTS[part]), count) for part, count in vars(memory).items()]
    width = max(cells(name) for name, _ in parts) + 1
    return [f"  {left(name, width)}{count / 2**30:8.2f} GiB" for name, count in parts]


def worked_out(report: PlanReport, columns: int | None) -> list[str]:
    """What plan works out for every way to train, at the fullest moment of a step, as lines of a table."""
    parts = list(vars(report.variants[0].memory))
    names = [f"  {phrase(_PARTS[part])}" for part in parts]
    recomputed, peak, fits = (
        phrase("screens_plan.recomputed"),
        phrase("memory.peak"),
        phrase("screens_plan.fits"),
    )
    width = max(map(cells, [*names, recomputed, peak, fits])) + 1
    # the config's own way comes first, and stays where there is room for one column only
    fitting = len(report.variants) if columns is None else max(1, (columns - width) // 12)
    shown = sorted(report.variants[:fitting], key=lambda variant: (variant.max_length, variant.recomputed))
    unit, bytes_ = ("GiB", 1 << 30) if max(v.memory.peak for v in shown) >= 1 << 30 else ("MiB", 1 << 20)

    def row(name: str, values: Sequence[str]) -> str:
        return left(name, width) + "".join(right(value, 12) for value in values)

    on_gpu = report.device != "CPU"
    title = phrase("screens_plan.gpu_memory" if on_gpu else "screens_plan.memory", unit=unit)
    return [
        folded("", title, columns),
        row("", [str(variant.max_length) + ("*" if variant.asked_for else "") for variant in shown]),
        row(recomputed, [f"{variant.recomputed}/{report.layers}" for variant in shown]),
        *(
            row(name, [f"{getattr(variant.memory, part) / bytes_:.2f}" for variant in shown])
            for name, part in zip(names, parts, strict=True)
        ),
        row(peak, [f"{variant.memory.peak / bytes_:.2f}" for variant in shown]),
        row(fits, [_fits(variant.memory.peak, report.free_bytes) for variant in shown]),
        folded("* ", phrase("screens_plan.legend"), columns),
        folded("", _room(report, on_gpu), columns),
    ]


def _fits(peak_bytes: int, free_bytes: int | None) -> str:
    if free_bytes is None:
        return "?"
    return phrase("screens_plan.yes") if peak_bytes + _BESIDES_BYTES <= free_bytes else phrase("screens_plan.no")


def _room(report: PlanReport, on_gpu: bool) -> str:
    besides = phrase("screens_plan.cuda_takes") if on_gpu else phrase("screens_plan.python_takes")
    if report.free_bytes is None:
        return phrase("screens_plan.no_gpu", besides=besides)
    return phrase("screens_plan.free", device=report.device, free=report.free_bytes / 2**30, besides=besides)
