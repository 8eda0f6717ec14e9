"""Training memory by part: as measured, and as estimated by plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aegis.messages import phrase
from aegis.messages.layout import cell_width, ljust, rjust, wrap

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.stages.plan import PlanReport
    from aegis.training.memory import MemoryParts
    from aegis.training.planning.offload_or_checkpoint import MemoryPlan

_BESIDES_BYTES = 1 << 30
"""Memory that CUDA or Python takes in addition to what training allocates."""


def _named(part: str) -> str:
    return phrase(f"memory.{part}")


def measured(memory: MemoryParts) -> list[str]:
    """Return what train --dry-run measured, one line per part."""
    parts = [(_named(part), count) for part, count in vars(memory).items()]
    width = max(cell_width(name) for name, _ in parts) + 1
    return [f"  {ljust(name, width)}{count / 2**30:8.2f} GiB" for name, count in parts]


def worked_out(report: PlanReport, columns: int | None) -> list[str]:
    """Return plan's estimate of the peak of a step for every variant, as the lines of a table."""
    names = [name for name, _ in _rows(report, report.variants)]
    width = max(map(cell_width, names)) + 1
    # the configured variant comes first, and is the one shown if there is room for only one column
    fitting = len(report.variants) if columns is None else max(1, (columns - width) // 12)
    shown = sorted(report.variants[:fitting], key=lambda variant: (variant.max_length, variant.checkpointed_layers))
    on_gpu, is_sharded = report.device != "CPU", shown[0].sharded is not None
    title = phrase("screens_plan.gpu_memory" if on_gpu else "screens_plan.memory", unit=_unit(shown)[0])
    sharded = phrase("screens_plan.sharded", loaded=report.base_bytes / 2**30) if is_sharded else ""
    return [
        wrap("", title, columns),
        *(ljust(name, width) + "".join(rjust(value, 12) for value in values) for name, values in _rows(report, shown)),
        wrap("* ", phrase("screens_plan.legend"), columns),
        *(
            [wrap("", phrase("screens_plan.offloaded_layers"), columns)]
            if any(variant.offloaded_layers for variant in shown)
            else []
        ),
        *([wrap("", sharded, columns)] if sharded else []),
        wrap("", _room(report, on_gpu), columns),
    ]


def _rows(report: PlanReport, variants: Sequence[MemoryPlan]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table: a name, and a text per variant."""
    _, unit_bytes = _unit(variants)
    sharded = [variant.sharded for variant in variants if variant.sharded is not None]

    def amounts(counts: Iterable[int]) -> list[str]:
        return [f"{count / unit_bytes:.2f}" for count in counts]

    rows = [("", [str(variant.max_length) + ("*" if variant.asked_for else "") for variant in variants])]
    if sharded:
        rows.append((phrase("screens_plan.processes"), [str(variant.processes) for variant in variants]))
    rows.append(
        (
            phrase("screens_plan.checkpointed"),
            [f"{variant.checkpointed_layers}/{report.layers}" for variant in variants],
        )
    )
    if any(variant.offloaded_layers for variant in variants):
        rows.append(
            (phrase("screens_plan.offloaded"), [f"{variant.offloaded_layers}/{report.layers}" for variant in variants])
        )
    if any(variant.host_bytes for variant in variants):
        rows.append((phrase("screens_plan.host_memory"), amounts(variant.host_bytes for variant in variants)))
    for part in vars(variants[0].memory):
        rows.append((f"  {_named(part)}", amounts(getattr(variant.memory, part) for variant in variants)))
        if part == "weights" and sharded:
            for name in vars(sharded[0]):
                rows.append((f"    {_named(name)}", amounts(getattr(weights, name) for weights in sharded)))
    rows.append((phrase("memory.peak"), amounts(variant.memory.peak for variant in variants)))
    rows.append((phrase("screens_plan.fits"), [_fits(report, variant) for variant in variants]))
    return rows


def _unit(variants: Sequence[MemoryPlan]) -> tuple[str, int]:
    return ("GiB", 1 << 30) if max(variant.memory.peak for variant in variants) >= 1 << 30 else ("MiB", 1 << 20)


def _fits(report: PlanReport, variant: MemoryPlan) -> str:
    free, fillable, peak = report.free_bytes, report.usable_bytes, variant.memory.peak
    if free is None and fillable is None:
        return "?"
    # each process has its own GPU; all share the host's memory
    sharing = variant.processes if report.device == "CPU" else 1
    fits = (free is None or sharing * (peak + _BESIDES_BYTES) <= free) and (fillable is None or peak <= fillable)
    return phrase("screens_plan.yes") if fits else phrase("screens_plan.no")


def _room(report: PlanReport, on_gpu: bool) -> str:
    besides = phrase("screens_plan.cuda_takes") if on_gpu else phrase("screens_plan.python_takes")
    if report.cap_bytes is not None:
        besides = phrase("screens_plan.capped", cap=report.cap_bytes / 2**30)
    if report.free_bytes is None:
        key = "screens_plan.no_gpu" if report.cap_bytes is None else "screens_plan.no_gpu_capped"
        return phrase(key, besides=besides)
    return phrase("screens_plan.free", device=report.device, free=report.free_bytes / 2**30, besides=besides)
