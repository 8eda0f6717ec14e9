"""The final text of each command: the result, where it is, and the next command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.cli.screens import memory
from aegis.messages import phrase
from aegis.messages.layout import Colour, cell_width, fold, ljust, paint, terminal_columns, wrap
from aegis.messages.safe import shell_word

if TYPE_CHECKING:  # these modules load torch, which `aegis --help` must not
    from aegis.config.train_settings import TrainConfig
    from aegis.doctor import Finding
    from aegis.report.answers import ModelAnswers
    from aegis.stages.export import ExportReport
    from aegis.stages.import_soul import ImportReport
    from aegis.stages.merge import MergeReport
    from aegis.stages.push import PushReport
    from aegis.training.train_report import TrainReport


def diagnosed(findings: Sequence[Finding], columns: int | None = None) -> str:
    """After doctor: one line per finding with its fix below, and a line of verdict; folded to the terminal's width."""
    narrow = columns is not None and columns < 60
    width = 0 if narrow else max((cell_width(_named(finding)) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append((f"{finding.state:<5} {ljust(_named(finding), width)}  ", finding.detail))
        if finding.cure:
            lines.append((f"{' ' * 6}{phrase('ending.do')}: ", finding.cure))
    failed = [_named(finding) for finding in findings if finding.state == "fail"]
    warned = sum(finding.state == "warn" for finding in findings)
    if failed:
        lines.append(("", phrase("doctor.not_ready", names=", ".join(failed))))
    elif warned:
        lines.append(("", phrase("doctor.ready_and_warned", warned=warned, count=len(findings))))
    else:
        lines.append(("", phrase("doctor.ready")))
    return "\n".join(_painted(wrap(start, text, columns)) for start, text in lines)


def _painted(line: str) -> str:
    colours: dict[str, Colour] = {"ok": "good", "warn": "warning", "fail": "bad"}
    state = line.partition(" ")[0]
    return paint(state, colours[state]) + line[len(state) :] if state in colours else line


def _named(finding: Finding) -> str:
    return phrase(f"finding.{finding.name}")


def trained(report: TrainReport, run: Path) -> str:
    """After train."""
    losses = [
        *([] if report.loss is None else [phrase("screens.loss", loss=report.loss)]),
        *([] if report.heldout_loss is None else [phrase("screens.heldout_loss", loss=report.heldout_loss)]),
        *([] if report.keep_kl is None else [phrase("screens.keep_kl", kl=report.keep_kl)]),
    ]
    steps = phrase("screens.steps", steps=report.steps, passes=report.passes * report.steps / report.planned_steps)
    found = f"  {steps}  {'  '.join(losses)}  α {report.alpha:.3f}  g {report.gate:.4f}"
    return f"{report.adapter}\n{_folded(found)}\n{next_commands(f'aegis merge --run {shell_word(run)}')}"


def _folded(text: str) -> str:
    return fold(text, terminal_columns())


def dry_run(report: TrainReport, settings: TrainConfig) -> str:
    """After train --dry-run: memory by part, speed, and the time of the complete run."""
    assert report.memory is not None
    assert report.tokens_per_second is not None
    tokens = report.planned_steps * settings.batch_size * settings.gradient_accumulation_steps * settings.max_length
    tokens *= report.processes
    minutes = (report.start_seconds + tokens / report.tokens_per_second) / 60
    speed, start = report.tokens_per_second, report.start_seconds
    taken = phrase("screens.steps_taken", taken=report.steps, steps=report.planned_steps, passes=report.passes)
    return "\n".join(
        [
            _folded(taken),
            *memory.measured(report.memory),
            _folded(f"  {phrase('screens.whole_run', speed=speed, start=start, minutes=minutes)}"),
        ]
    )


def merged(report: MergeReport, run: Path | None) -> str:
    """After merge."""
    where = f"--run {shell_word(run)}" if run else f"--model {shell_word(report.out)} --out FOLDER"
    found = phrase(
        "screens.merged",
        tensors=report.tensors,
        adapted=report.adapted,
        gate=report.gate,
        untied=phrase("screens.untied") if report.untied else "",
    )
    return f"{report.out}\n{_folded(f'  {found}')}\n{next_commands(f'aegis export-gguf {where}')}"


def imported(report: ImportReport) -> str:
    """After import-soul."""
    key = "screens.imported_reflection" if report.reflection else "screens.imported_rotation"
    found = phrase(key, step=report.step, alpha=report.alpha, gate=report.gate, size=report.hidden_size)
    command = f"aegis merge --base-model BASE --adapter FOLDER --soul {shell_word(report.out)} --out FOLDER"
    return f"{report.out}\n{_folded(f'  {found}')}\n{next_commands(command)}"


def exported(report: ExportReport) -> str:
    """After export-gguf and run: the files, and how to run the first."""
    from aegis.report.card import ollama_name  # imported here: doctor must work without pydantic

    first, name = report.files[0], ollama_name(report.name)
    lines = [report.name]
    lines += [f"  {file}  {file.stat().st_size / 1e6:.1f} MB" for file in report.files]
    lines += [
        f"{phrase('screens.next')}:",
        f"  aegis chat --gguf {shell_word(first)}",
        f"  ollama create {name} -f {shell_word(first.parent / 'Modelfile')}",
        f"  ollama run {name}",
        f"  llama-server -m {shell_word(first)} -c {report.context_tokens} --jinja",
    ]
    return "\n".join(lines)


def would_be_pushed(report: PushReport) -> str:
    """After push --dry-run."""
    return f"{_folded(phrase('screens.would_push'))}\n{pushed(report)}"


def pushed(report: PushReport) -> str:
    """After push."""
    lines = [f"  {name}" for name in report.files]
    if not report.verified:
        lines.append(phrase("screens.unverified"))
    return "\n".join([report.url, *lines])


def serving(url: str, models: Sequence[str], context_tokens: int) -> str:
    """When serve takes requests: the page, the protocol's address, the models, and a request to copy."""
    protocol = f"{url}/v1"
    lines = (
        phrase("screens.served", url=protocol),
        phrase("screens.serving", model=", ".join(models), context=context_tokens),
    )
    notes = [_folded(f"  {line}") for line in lines]
    request = phrase("screens.served_curl", url=protocol).replace("\n", "\n  ")
    return "\n".join([url, *notes, *([f"  {request}"] if os.name != "nt" else [])])


def watched(url: str, run: Path) -> str:
    """When the page of a run can be opened."""
    note = phrase("screens.watched", run=run)
    return f"{url}\n{_folded(f'  {note}')}"


def before_and_after(questions: Sequence[str], answers: Sequence[ModelAnswers]) -> str:
    """After the demo: the base's answers beside those of the finished file, and the questions that were not asked."""
    names = phrase("screens.question"), *(phrase("screens.base") if who.who == "base" else "aegis" for who in answers)
    width = max(map(cell_width, names)) + 2
    lines = [_folded(phrase("screens.before_and_after"))]
    for number, question in enumerate(questions):
        texts = question, *(who.answers[number].text if number < len(who.answers) else "-" for who in answers)
        lines.append("".join(f"\n  {ljust(name, width)}{text}" for name, text in zip(names, texts, strict=True)))
    lines += [
        f"\n  {ljust(name, width)}{who.missing}" for name, who in zip(names[1:], answers, strict=True) if who.missing
    ]
    return "\n".join(lines) + "\n"


def initialised(out: Path) -> str:
    """After init."""
    first, second = (f"aegis {command} --config {shell_word(out)}" for command in ("plan", "run"))
    return f"{out}\n{next_commands(first, second)}"


def next_commands(*commands: str) -> str:
    """Return the next commands, one per line."""
    start = f"{phrase('screens.next')}: "
    return start + f"\n{' ' * cell_width(start)}".join(commands)
