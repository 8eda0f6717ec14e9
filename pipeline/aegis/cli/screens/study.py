"""The texts of quantize-study: a table of all files, the rule, the recommended file and the command that makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.cli.screens.results import next_commands
from aegis.messages import phrase
from aegis.messages.layout import fold, paint, table, terminal_columns
from aegis.messages.safe import shell_word
from aegis.runs import disk
from aegis.runs.run import IMATRIX, REPORT, STUDY_PLOT

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from pathlib import Path

    from aegis.stages.quantize_study import StudyReport
    from aegis.verification.study.result import Measured, Study


def planned(report: StudyReport) -> str:
    """After quantize-study --dry-run."""
    held = phrase("screens_study.would_hold", out=report.out, made=report.made)
    needed = phrase("screens_plan.disk_on_the_way", needed=disk.format_bytes(report.disk_bytes))
    return fold(f"{held}\n{needed}", terminal_columns())


def studied(report: StudyReport, study: Study, run: Path, columns: int | None = None) -> str:
    """After quantize-study."""
    lines = [
        phrase("screens_study.measured", tokens=study.tokens),
        f"· {phrase('screens_study.front')}",
        f"→ {phrase('screens_study.rule', tolerance=study.tolerance, percent=100 * study.tolerance)}",
    ]
    if study.importance is not None:
        lines.append(phrase("screens_study.importance", tokens=study.importance.tokens))
    page, picture = (shell_word(report.out / name) for name in (REPORT, STUDY_PLOT))
    lines += ["", phrase("screens_study.report", report=page, picture=picture)]
    folded = [fold(line, columns) for line in lines]
    return "\n".join([*_table(study, columns), "", *folded, next_commands(command(report, study, run))])


def _table(study: Study, columns: int | None) -> list[str]:
    heads = [
        phrase("screens_study.type"),
        phrase("screens_study.variant"),
        "MB",
        phrase("screens_verify.mean_kl"),
        "top-1",
        phrase("screens_study.perplexity"),
        phrase("screens_study.reads"),
        phrase("screens_study.writes"),
    ]
    reference, front, chosen = study.reference, study.front, study.recommended
    first = [
        *("F16", phrase("screens_study.reference"), f"{reference.bytes / 1e6:.2f}", "", ""),
        *(f"{reference.perplexity:.3f}", f"{reference.speed.reading:.0f}", f"{reference.speed.writing:.1f}"),
    ]
    room = None if columns is None else columns - 2
    head, *texts = table(heads, [first, *map(_texts, study.measured)], room, names=2)
    lines = [*([f"  {head}"] if head else []), f"  {texts[0]}"]
    for found, text in zip(study.measured, texts[1:], strict=True):
        mark = paint("→", "good") if found == chosen else "·" if found in front else " "
        lines.append(f"{mark} {text}")
        if found.same_as:
            lines.append(f"    {phrase('screens_study.same_file', variant=found.same_as)}")
    for left in study.left:
        reason = phrase("screens_study.not_made", reason=phrase(f"not_built.{left.reason}"))
        lines.append(fold(f"  {left.quant}  {left.variant}  {reason}", columns))
    return lines


def _texts(measured: Measured) -> list[str]:
    found = measured.found
    return [
        *(measured.quant, measured.variant, f"{measured.bytes / 1e6:.2f}"),
        *(f"{found.mean_kl:.2e}", f"{found.top1:.2%}", f"{measured.perplexity:.3f}"),
        *(f"{measured.speed.reading:.0f}", f"{measured.speed.writing:.1f}"),
    ]


def command(report: StudyReport, study: Study, run: Path) -> str:
    """Return the command that makes the recommended file, byte for byte."""
    chosen = study.recommended
    parts = [f"aegis export-gguf --run {shell_word(run)} --quant {chosen.quant}"]
    if "imatrix" in chosen.variant:
        parts.append(f"--imatrix {shell_word(report.out / IMATRIX)}")
    if "head-q8_0" in chosen.variant:
        parts.append("--head-quant q8_0")
    parts.append(f"--name {shell_word(report.name)}")
    if chosen.variant != "plain":  # a directory has one recipe, so types cannot be added to another one's export
        parts.append("--overwrite")
    return " ".join(parts)
