"""The texts of quantize-study: a table of every file, the rule, the file that it recommends and how to make it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from aegis import disk
from aegis.screens import quoted

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from pathlib import Path

    from aegis.proof.study import Measured, Study
    from aegis.stages.quantize_study import StudyReport

_HEAD = (
    f"  {'type':<8} {'variant':<18}{'MB':>9}{'mean KL':>11}{'99 %':>11}{'top-1':>9}{'perplexity':>12}"
    f"{'reads':>8}{'writes':>8}"
)


def planned(report: StudyReport) -> str:
    """After quantize-study --dry-run."""
    return (
        f"{report.out} would hold the measurements of {report.made} files\n"
        f"at most {disk.human(report.disk_bytes)} of disk on the way; nothing was written"
    )


def studied(report: StudyReport, study: Study, run: Path) -> str:
    """After quantize-study."""
    front, chosen = study.front, study.recommended
    reference = study.reference
    lines = [
        _HEAD,
        f"  {'F16':<8} {'reference':<18}{reference.bytes / 1e6:>9.2f}{'':>31}{reference.perplexity:>12.3f}"
        f"{reference.speed.reading:>8.0f}{reference.speed.writing:>8.1f}",
    ]
    for row in study.measured:
        mark = "→" if row == chosen else "·" if row in front else " "
        lines.append(f"{mark} {_row(row)}")
    lines += [f"  {row.quant:<8} {row.variant:<18}not made: {row.reason}" for row in study.left]
    lines += [
        "",
        f"measured on {study.tokens:,} tokens against f16; KL in nats a token; tokens/s on this machine",
        "· no other file is both smaller and nearer to f16",
        f"→ recommended: {study.rule}",
    ]
    if study.importance is not None:
        lines.append(f"importance matrix from {study.importance.tokens:,} other tokens of the same text")
    lines += [
        "",
        f"report: {quoted(report.out / 'report.json')}, picture: {quoted(report.out / 'study.png')}",
        f"next: {command(report, study, run)}",
    ]
    return "\n".join(lines)


def _row(row: Measured) -> str:
    found = row.found
    text = (
        f"{row.quant:<8} {row.variant:<18}{row.bytes / 1e6:>9.2f}{found.mean_kl:>11.2e}{found.p99_kl:>11.2e}"
        f"{found.top1:>9.2%}{row.perplexity:>12.3f}{row.speed.reading:>8.0f}{row.speed.writing:>8.1f}"
    )
    return f"{text}  same file as {row.same_as}" if row.same_as else text


def command(report: StudyReport, study: Study, run: Path) -> str:
    """What makes the recommended file, to the byte."""
    chosen = study.recommended
    parts = [f"aegis export-gguf --run {quoted(run)} --quant {chosen.quant}"]
    if "imatrix" in chosen.variant:
        parts.append(f"--imatrix {quoted(report.out / 'imatrix.gguf')}")
    if "head-q8_0" in chosen.variant:
        parts.append("--head-quant q8_0")
    return " ".join([*parts, f"--name {shlex.quote(report.name)}", "--overwrite"])
