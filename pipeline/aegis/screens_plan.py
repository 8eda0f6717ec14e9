"""The texts of plan and of the dry runs: what it would take, before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aegis import disk
from aegis.screens import folded

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.config import TrainConfig
    from aegis.stages.export import ExportReport
    from aegis.stages.merge import MergeReport
    from aegis.stages.plan import Need, PlanReport, VerifyOutlook

_BESIDES_BYTES = 1 << 30
"""What CUDA, or Python, takes beside what training asks for."""


def planned(report: PlanReport, settings: TrainConfig, columns: int | None = None) -> str:
    """After plan: model, data, adapter, memory by part for this way and its neighbours, disk, time."""
    where = report.folder if report.here else "not on this machine yet"
    revision = f"@{report.revision[:12]}" if report.revision else ""
    lines = [
        ("base", f"{report.base}{revision}: {report.model_type}, {report.parameters:,} parameters ({where})"),
        ("data", _data(report, settings)),
    ]
    lines += [
        (
            "adapter",
            f"{row.target}: {row.modules} modules of {row.in_features} → {row.out_features}, "
            f"{row.parameters:,} parameters",
        )
        for row in report.targets
    ]
    trained = report.adapter_parameters + report.soul_parameters
    parts = f"adapter {report.adapter_parameters:,}, soul {report.soul_parameters:,}"
    lines.append(("trained", f"{trained:,} parameters: {parts}"))
    room = [(need.what, _need(need)) for need in report.needs]
    return "\n".join(
        [
            *(folded(f"{name:<9}", text, columns) for name, text in lines),
            "",
            *_memory_table(report, columns),
            "",
            *(folded(f"{name:<24}", text, columns) for name, text in room),
            folded(f"{'time':<24}", _time(report, settings), columns),
            "nothing was written",
        ]
    )


def _data(report: PlanReport, settings: TrainConfig) -> str:
    data = report.data
    if data is None:
        return f"{settings.dataset}: not looked at, {report.data_missing}"
    return (
        f"{data.source}: {data.rows:,} rows, {data.heldout_rows:,} of them held out; "
        f"{data.tokens:,} tokens, {data.trained_tokens:,} of them learnt, "
        f"in {data.windows:,} windows of {settings.max_length}"
    )


def _memory_table(report: PlanReport, columns: int | None) -> list[str]:
    # the config's own way comes first, and stays where there is room for one column only
    fitting = len(report.variants) if columns is None else max(1, (columns - 16) // 12)
    shown = sorted(report.variants[:fitting], key=lambda variant: (variant.max_length, variant.recomputed))
    unit, bytes_ = ("GiB", 1 << 30) if max(v.memory.peak for v in shown) >= 1 << 30 else ("MiB", 1 << 20)

    def row(name: str, values: Sequence[str]) -> str:
        return f"{name:<16}" + "".join(f"{value:>12}" for value in values)

    on_gpu = report.device != "CPU"
    title = f"{'GPU memory' if on_gpu else 'memory'} in {unit} at the fullest moment of a step, by tokens a window:"
    return [
        folded("", title, columns),
        row("", [str(variant.max_length) + ("*" if variant.asked_for else "") for variant in shown]),
        row("recomputed", [f"{variant.recomputed}/{report.layers}" for variant in shown]),
        *(
            row(f"  {part.replace('_', ' ')}", [f"{getattr(v.memory, part) / bytes_:.2f}" for v in shown])
            for part in vars(shown[0].memory)
        ),
        row("peak", [f"{variant.memory.peak / bytes_:.2f}" for variant in shown]),
        row("fits", [_fits(variant.memory.peak, report.free_bytes) for variant in shown]),
        folded("* ", "as configured; recomputed: layers whose activations are worked out again.", columns),
        folded("", _room(report, on_gpu), columns),
    ]


def _fits(peak_bytes: int, free_bytes: int | None) -> str:
    if free_bytes is None:
        return "?"
    return "yes" if peak_bytes + _BESIDES_BYTES <= free_bytes else "NO"


def _room(report: PlanReport, on_gpu: bool) -> str:
    besides = "CUDA itself and fragments take up to 1 GiB more" if on_gpu else "Python takes 1 GiB more"
    if report.free_bytes is None:
        return f"No GPU is here to say whether it fits; {besides}"
    return f"{report.device}: {report.free_bytes / 2**30:.1f} GiB free; {besides}"


def _need(need: Need) -> str:
    free = "" if need.free_bytes is None else f", {disk.human(need.free_bytes)} free"
    short = "  TOO LITTLE" if need.free_bytes is not None and need.free_bytes < need.bytes else ""
    return f"up to {disk.human(need.bytes)}{free}{f' ({need.where})' if need.where else ''}{short}"


def _scaled(count: float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} T"


def _time(report: PlanReport, settings: TrainConfig) -> str:
    work = f"{report.tokens:,} tokens × {_scaled(report.flops_per_token)}FLOP of matrix products"
    real = "`aegis train --dry-run` measures real steps"
    if report.flops_per_second is None:
        return f"not known without the GPU: {settings.max_steps} steps, {work}; there, {real}"
    least = _duration(report.tokens * report.flops_per_token / report.flops_per_second)
    return (
        f"at least {least} for {settings.max_steps} steps: {work} "
        f"at {_scaled(report.flops_per_second)}FLOP/s, measured now on this {report.device}; {real}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def merge_planned(report: MergeReport) -> str:
    """After merge --dry-run."""
    return (
        f"{report.out} would hold {report.tensors} tensors, {report.adapted} of them adapted, "
        f"{disk.human(report.bytes)}; soul folded into the LM head with g {report.gate:.4f}"
        f"{', head untied' if report.untied else ''}\n"
        "base, adapter and soul fit each other; nothing was written"
    )


def export_planned(report: ExportReport) -> str:
    """After export-gguf --dry-run."""
    files = "\n".join(f"  {file}" for file in report.files)
    return (
        f"{report.name}, to run with {report.context_tokens} tokens of context, would be\n{files}\n"
        f"at most {disk.human(report.disk_bytes or 0)} of disk on the way; nothing was written"
    )


def verify_planned(outlook: VerifyOutlook) -> str:
    """After verify --dry-run."""
    lines = [
        "the run is whole: every file is what its manifest says",
        f"{outlook.tokens:,} tokens would go through {', '.join(outlook.models)}",
        *(f"{need.what}: {_need(need)}" for need in (outlook.scratch, outlook.memory)),
        "nothing was written",
    ]
    return "\n".join(lines)
