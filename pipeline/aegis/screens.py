"""The texts a command ends with: what came out, where it is, what to type next."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.report.card import ollama_name

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.chain import Answer
    from aegis.config import TrainConfig
    from aegis.doctor import Finding
    from aegis.proof.verdict import Verdict
    from aegis.stages.examine import Examination
    from aegis.stages.export import ExportReport
    from aegis.stages.import_soul import ImportReport
    from aegis.stages.merge import MergeReport
    from aegis.stages.push import PushReport
    from aegis.stages.train import TrainReport


def terminal_columns() -> int | None:
    """How wide the terminal is that results go to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def diagnosed(findings: Sequence[Finding], columns: int | None = None) -> str:
    """After doctor: a line a finding, what to type under it, one line of verdict; folded to a terminal's width."""
    narrow = columns is not None and columns < 60
    width = 0 if narrow else max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append((f"{finding.state:<5} {finding.name:<{width}}  ", finding.detail))
        if finding.cure:
            lines.append((" " * 6 + "do: ", finding.cure))
    failed = [finding.name for finding in findings if finding.state == "fail"]
    warned = sum(finding.state == "warn" for finding in findings)
    if failed:
        lines.append(("", f"not ready: {', '.join(failed)}; after each cure: aegis doctor"))
    else:
        lines.append(("", "ready" + (f"; {warned} of {len(findings)} lines worth a look" if warned else "")))
    return "\n".join(folded(start, text, columns) for start, text in lines)


def folded(start: str, text: str, columns: int | None) -> str:
    """A line that keeps its indent on a terminal of so many columns; as it is where there is none."""
    if columns is None:
        return start + text
    indent = " " * min(len(start), columns // 3)
    return textwrap.fill(
        start + text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def trained(report: TrainReport, run: Path) -> str:
    """After train."""
    losses = "  ".join(
        f"{name} {value:.4f}"
        for name, value in (("loss", report.loss), ("held-out loss", report.heldout_loss))
        if value is not None
    )
    return (
        f"{report.adapter}\n  {report.steps} steps  {losses}  α {report.alpha:.3f}  g {report.gate:.4f}\n"
        f"next: aegis merge --run {quoted(run)}"
    )


def dry_run(report: TrainReport, settings: TrainConfig) -> str:
    """After train --dry-run: memory by part, speed, and what the whole run would take."""
    assert report.memory is not None
    assert report.tokens_per_second is not None
    tokens = settings.max_steps * settings.batch_size * settings.gradient_accumulation_steps * settings.max_length
    tokens *= report.processes
    lines = [f"{report.steps} of {settings.max_steps} steps taken; nothing was kept"]
    lines += [f"  {part:<12}{count / 2**30:8.2f} GiB" for part, count in vars(report.memory).items()]
    minutes = tokens / report.tokens_per_second / 60
    lines.append(f"  {report.tokens_per_second:.0f} tokens/s, about {minutes:.1f} minutes for the whole run")
    return "\n".join(lines)


def merged(report: MergeReport, run: Path | None) -> str:
    """After merge."""
    following = f"--run {quoted(run)}" if run else f"--model {quoted(report.out)} --out FOLDER"
    return (
        f"{report.out}\n  {report.tensors} tensors, {report.adapted} of them adapted, "
        f"soul folded into the LM head with g {report.gate:.4f}{', head untied' if report.untied else ''}\n"
        f"next: aegis export-gguf {following}"
    )


def imported(report: ImportReport) -> str:
    """After import-soul."""
    kind = "a reflection (det −1), kept as it was trained" if report.reflection else "a rotation (det +1)"
    return (
        f"{report.out}\n  step {report.step}  α {report.alpha:.3f}  g {report.gate:.4f}  "
        f"R {report.hidden_size} × {report.hidden_size}, {kind}\n"
        f"next: aegis merge --base-model BASE --adapter FOLDER --soul {quoted(report.out)} --out FOLDER"
    )


def exported(report: ExportReport) -> str:
    """After export-gguf and run: the files, and three ways to run the first."""
    first = report.files[0]
    lines = [report.name]
    lines += [f"  {file}  {file.stat().st_size / 1e6:.1f} MB" for file in report.files]
    lines += [
        "next:",
        f"  aegis chat --gguf {quoted(first)}",
        f"  ollama create {ollama_name(report.name)} -f {quoted(first.parent / 'Modelfile')}",
        f"  llama-server -m {quoted(first)} -c {report.context_tokens} --jinja",
    ]
    return "\n".join(lines)


def pushed(report: PushReport) -> str:
    """After push."""
    lines = [f"  {name}" for name in report.files]
    if not report.verified:
        lines.append("not verified, and the card says so")
    return "\n".join([report.url, *lines])


def serving(url: str, gguf: Path, context_tokens: int) -> str:
    """When serve takes requests."""
    return f"{url}\n  model {gguf.stem}, context {context_tokens} tokens; Ctrl-C ends it"


def verified(verdict: Verdict, folder: Path) -> str:
    """After verify: every check, every step between two models, what was kept of the base, one line of verdict."""
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}  {_first_line(check.detail)}" for check in verdict.checks]
    if verdict.steps:
        lines += ["", f"{'models':<20}{'mean KL':>11}{'99 %':>11}{'max':>11}{'top-1':>9}{'max |Δ|':>10}{'bound':>9}"]
    for step in verdict.steps:
        found = step.found
        bound = "-" if step.most_kl is None else f"{step.most_kl:.0e}"
        lines.append(
            f"{step.name:<20}{found.mean_kl:>11.2e}{found.p99_kl:>11.2e}{found.max_kl:>11.2e}"
            f"{found.top1:>9.2%}{found.max_delta:>10.4f}{bound:>9}{'' if step.ok else '  FAIL'}"
        )
    if verdict.perplexity:
        values = "  ".join(f"{name} {value:.3f}" for name, value in verdict.perplexity.items())
        lines += ["", f"perplexity  {values}"]
    if verdict.bases:
        lines += [
            "",
            f"{'trained → merged into':<31}{'mean KL':>11}{'99 %':>11}{'max':>11}{'top-1':>9}{'perplexity':>12}",
        ]
    for choice in verdict.bases:
        found, name = choice.found, f"{choice.name} weights{' (this run)' if choice.merged else ''}"
        lines.append(
            f"{name:<31}{found.mean_kl:>11.2e}{found.p99_kl:>11.2e}{found.max_kl:>11.2e}"
            f"{found.top1:>9.2%}{choice.perplexity:>12.3f}"
        )
    if verdict.kept is not None:
        kept = verdict.kept
        lines += [
            f"on other text  base {kept.base:.3f}, result {kept.result:.3f}",
            f"  at the best temperature  base {kept.base_tempered:.3f} (T {kept.base_temperature:.2f}), "
            f"result {kept.result_tempered:.3f} (T {kept.result_temperature:.2f})",
        ]
        if kept.lost > 0:
            lines.append(
                f"  lost {kept.lost:.3f} nats a token, {kept.lost - kept.lost_tempered:.3f} of it by temperature alone"
            )
    lines += ["", f"report: {folder / 'report.json'}"]
    if verdict.guilty is None:
        lines.append(f"proven on {verdict.tokens} tokens: what was trained is what runs")
    else:
        lines += [
            *(_first_line(failure) for failure in verdict.failures),
            f"NOT proven: the fault is in {verdict.guilty}",
        ]
    return "\n".join(lines)


def examined(found: Examination) -> str:
    """After verify PATH: every check, one line of verdict."""
    lines = [f"{quoted(found.path)}: {found.kind}"]
    for check in found.checks:
        lines.append(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}  {_first_line(check.detail)}")
        lines += [] if check.ok else [f"        {line}" for line in check.detail.splitlines()[1:]]
    if found.guilty is None:
        lines.append("sound, as far as one part alone can show")
    else:
        lines.append(f"NOT sound: the fault is in what {found.guilty} makes")
    return "\n".join(lines)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def before_and_after(pairs: Sequence[tuple[Answer, Answer]]) -> str:
    """The demo's proof to the eye: the base's answers beside the finished file's."""
    lines = ["the base before, and llama.cpp with the new file now:"]
    for before, after in pairs:
        lines.append(f"\n  質問   {after.prompt}\n  base   {before.text}\n  aegis  {after.text}")
    return "\n".join(lines) + "\n"


def quoted(path: Path) -> str:
    """A path as one word of a command line."""
    text = os.fspath(path)
    return f'"{text}"' if any(c.isspace() for c in text) else text
