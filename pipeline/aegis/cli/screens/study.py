"""The texts of quantize-study: a table of all files, the rule, the recommended file and the command that makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.cli.screens.results import next_commands
from aegis.messages import phrase
from aegis.messages.layout import table_row, widths
from aegis.messages.safe import shell_word
from aegis.runs import disk

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from pathlib import Path

    from aegis.stages.quantize_study import StudyReport
    from aegis.verification.study.result import Measured, Study

_MIN = (9, 18, 9, 11, 11, 9, 12, 8, 8)


def planned(report: StudyReport) -> str:
    """After quantize-study --dry-run."""
    return "\n".join(
        [
            phrase("screens_study.would_hold", out=report.out, made=report.made),
            phrase("screens_plan.disk_on_the_way", needed=disk.format_bytes(report.disk_bytes)),
        ]
    )


def studied(report: StudyReport, study: Study, run: Path) -> str:
    """After quantize-study."""
    return "\n".join(
        [
            *_table(study),
            "",
            phrase("screens_study.measured", tokens=study.tokens),
            f"· {phrase('screens_study.front')}",
            f"→ {phrase('screens_study.rule', tolerance=study.tolerance, percent=100 * study.tolerance)}",
            *(
                [phrase("screens_study.importance", tokens=study.importance.tokens)]
                if study.importance is not None
                else []
            ),
            "",
            phrase(
                "screens_study.report",
                report=shell_word(report.out / "report.json"),
                picture=shell_word(report.out / "study.png"),
            ),
            next_commands(command(report, study, run)),
        ]
    )


def _table(study: Study) -> list[str]:
    heads = [
        phrase("screens_study.type"),
        phrase("screens_study.variant"),
        "MB",
        phrase("screens_verify.mean_kl"),
        "99 %",
        "top-1",
        phrase("screens_verify.perplexity"),
        phrase("screens_study.reads"),
        phrase("screens_study.writes"),
    ]
    columns = widths(heads, _MIN)
    reference, front, chosen = study.reference, study.front, study.recommended
    numbers = [
        *(f"{reference.bytes / 1e6:.2f}", "", "", "", f"{reference.perplexity:.3f}"),
        *(f"{reference.speed.reading:.0f}", f"{reference.speed.writing:.1f}"),
    ]
    lines = [
        f"  {table_row(heads, columns, names=2)}",
        f"  {table_row(['F16', phrase('screens_study.reference'), *numbers], columns, names=2)}",
    ]
    for found in study.measured:
        mark = "→" if found == chosen else "·" if found in front else " "
        same = phrase("screens_study.same_file", variant=found.same_as) if found.same_as else ""
        lines.append(f"{mark} {table_row(_texts(found), columns, names=2)}{same and f'  {same}'}")
    for left in study.left:
        start = table_row([left.quant, left.variant], columns, names=2)
        lines.append(f"  {start}{phrase('screens_study.not_made', reason=phrase(f'not_built.{left.reason}'))}")
    return lines


def _texts(measured: Measured) -> list[str]:
    found = measured.found
    return [
        *(measured.quant, measured.variant, f"{measured.bytes / 1e6:.2f}"),
        *(f"{found.mean_kl:.2e}", f"{found.p99_kl:.2e}", f"{found.top1:.2%}", f"{measured.perplexity:.3f}"),
        *(f"{measured.speed.reading:.0f}", f"{measured.speed.writing:.1f}"),
    ]


def command(report: StudyReport, study: Study, run: Path) -> str:
    """Return the command that makes the recommended file, byte for byte."""
    chosen = study.recommended
    parts = [f"aegis export-gguf --run {shell_word(run)} --quant {chosen.quant}"]
    if "imatrix" in chosen.variant:
        parts.append(f"--imatrix {shell_word(report.out / 'imatrix.gguf')}")
    if "head-q8_0" in chosen.variant:
        parts.append("--head-quant q8_0")
    parts.append(f"--name {shell_word(report.name)}")
    if chosen.variant != "plain":  # a directory has one recipe: to such an export nothing can be added
        parts.append("--overwrite")
    return " ".join(parts)
