"""The texts of plan and of the dry runs: what the work would need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aegis.cli.screens import memory
from aegis.cli.screens.data import rows_line
from aegis.config.presets import DEMO
from aegis.messages import phrase
from aegis.messages.layout import cell_width, fold, ljust, terminal_columns, wrap
from aegis.runs import disk
from aegis.training.planning.data_sheet import RTX_3060_FLOPS, SHARE_REACHED

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.config.train_settings import TrainConfig
    from aegis.runs.space_needs import Need
    from aegis.stages.export import ExportReport
    from aegis.stages.merge import MergeReport
    from aegis.stages.plan import PlanReport
    from aegis.stages.plan_verify import VerifyOutlook
    from aegis.training.planning.finish_bytes import FinishPlan


def planned(report: PlanReport, settings: TrainConfig, columns: int | None = None) -> str:
    """After plan: model, data, adapter, memory by part for this variant and its neighbours, disk, time."""
    lines = [
        (phrase("screens_plan.base"), _base(report)),
        (phrase("screens_plan.data"), _data(report, settings)),
        *((phrase("screens_plan.adapter"), row.explain()) for row in report.targets),
    ]
    trained = phrase(
        "screens_plan.parameters",
        parameters=report.adapter_parameters + report.soul_parameters,
        adapter=report.adapter_parameters,
        soul=report.soul_parameters,
    )
    lines.append((phrase("screens_plan.trained"), trained))
    room = [(phrase(f"need.{need.what}"), _need(need)) for need in report.needs]
    room.append((phrase("screens_plan.time"), _time(report)))
    if report.finish is not None:
        room.append((phrase("screens_plan.finish"), _finish(report.finish)))
    return "\n".join(
        [
            *_named(lines, columns),
            "",
            *memory.worked_out(report, columns),
            "",
            *_named(room, columns),
            phrase("screens_plan.nothing_written"),
        ]
    )


def _named(lines: Sequence[tuple[str, str]], columns: int | None) -> list[str]:
    """Return texts in one column, each after its name."""
    width = max(cell_width(name) for name, _ in lines) + 2
    return [wrap(ljust(name, width), text, columns) for name, text in lines]


def _base(report: PlanReport) -> str:
    return phrase(
        "screens_plan.model",
        name=report.base + (f"@{report.revision[:12]}" if report.revision else ""),
        model_type=report.model_type,
        parameters=report.parameters,
        where=report.folder if report.here else phrase("screens_plan.not_here"),
    )


def _data(report: PlanReport, settings: TrainConfig) -> str:
    data = report.data
    if data is None:
        return phrase("screens_plan.not_looked_at", dataset=settings.dataset, why=report.data_missing)
    source = DEMO if settings.dataset == DEMO else data.source
    return rows_line(data, source, settings.max_length, steps=report.steps, passes=report.passes)


def _need(need: Need) -> str:
    return phrase(
        "screens_plan.need",
        needed=disk.format_bytes(need.bytes),
        free=""
        if need.free_bytes is None
        else phrase("screens_plan.free_room", free=disk.format_bytes(need.free_bytes)),
        where=phrase("screens_plan.where", run_dir=need.where) if need.where else "",
        short=phrase("screens_plan.too_little") if need.free_bytes is not None and need.free_bytes < need.bytes else "",
    )


def _time(report: PlanReport) -> str:
    if report.flops_per_second is None:
        least = report.tokens * report.flops_per_token / RTX_3060_FLOPS
        return phrase(
            "screens_plan.time_by_data_sheet",
            steps=report.steps,
            tokens=report.tokens,
            rate=RTX_3060_FLOPS / 1e12,
            least=_duration(least),
            likely=_duration(least / SHARE_REACHED),
            share=SHARE_REACHED,
        )
    seconds = report.tokens * report.flops_per_token / report.flops_per_second
    return phrase(
        "screens_plan.time_at_least",
        least=_duration(seconds),
        steps=report.steps,
        tokens=report.tokens,
        device=report.device,
    )


def _finish(finish: FinishPlan) -> str:
    return phrase(
        "screens_plan.finish_line",
        steps=finish.steps,
        quant=finish.quant,
        values=finish.quantized,
        took=_duration(finish.quantizing_seconds),
        cores=finish.cores,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return phrase("screens_plan.seconds", count=seconds)
    if seconds < 5400:
        return phrase("screens_plan.minutes", count=seconds / 60)
    return phrase("screens_plan.hours", count=seconds / 3600)


def merge_planned(report: MergeReport) -> str:
    """After merge --dry-run."""
    found = phrase(
        "screens_plan.would_merge",
        out=report.out,
        tensors=report.tensors,
        adapted=report.adapted,
        size=disk.format_bytes(report.bytes),
        gate=report.gate,
        untied=phrase("screens.untied") if report.untied else "",
    )
    return fold(f"{found}\n{phrase('screens_plan.parts_fit')}", terminal_columns())


def export_planned(report: ExportReport) -> str:
    """After export-gguf --dry-run."""
    columns = terminal_columns()
    return "\n".join(
        [
            fold(phrase("screens_plan.would_export", name=report.name, context=report.context_tokens), columns),
            *(f"  {file}" for file in report.files),
            fold(phrase("screens_plan.disk_on_the_way", needed=disk.format_bytes(report.disk_bytes or 0)), columns),
        ]
    )


def verify_planned(outlook: VerifyOutlook) -> str:
    """After verify --dry-run."""
    lines = [
        phrase("screens_plan.run_whole"),
        phrase("screens_plan.would_verify", tokens=outlook.tokens, models=", ".join(outlook.models)),
        *(f"{phrase(f'need.{need.what}')}: {_need(need)}" for need in (outlook.scratch, outlook.memory)),
        phrase("screens_plan.nothing_written"),
    ]
    return fold("\n".join(lines), terminal_columns())
