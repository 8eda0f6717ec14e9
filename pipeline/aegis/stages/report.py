"""report: writes one HTML file with everything that a run's directories record, and with its plots.

It names missing parts, so a report can be written for a training alone, or for a run with damaged parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aegis.chat import ask
from aegis.chat.ask import Limits
from aegis.errors import AegisError, IntegrityError
from aegis.messages import Language, language, phrase, words
from aegis.report import sections
from aegis.report.answers import ANSWERS, ModelAnswers
from aegis.report.page import Page, render
from aegis.report.run_parts import RunParts
from aegis.report.values import as_number, public
from aegis.runs.disk import format_bytes
from aegis.runs.manifest import Manifest, finished
from aegis.runs.metrics import read_metrics
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.verification.verdict import read_verdict


@dataclass(frozen=True)
class Samples:
    """The questions and the models' answers; `missing` says why there are none."""

    questions: Sequence[str] = ()
    voices: Sequence[ModelAnswers] = ()
    heldout: bool = False
    missing: str = ""


def report(run: Run, limits: Limits, questions: Sequence[str] = (), *, reuse: bool = False) -> Path:
    """Ask the models, write report/report.html into a run, replacing an older one, and return its path.

    Args:
        limits: limits of the answers; a count of 0 without `questions` asks nothing.
        questions: the questions; those of held-out chats if there are none.
        reuse: keep a report with the same settings and parts.

    Raises:
        UsageError: the run has no finished training.
        EnvironmentFault: the disk is full.
    """
    run.require_training()
    parts = RunParts.of(run)
    manifest = Manifest(
        stage="report",
        config={"language": language(), **asdict(limits), "questions": list(questions)},
        inputs={name: found.exact_identity for name, found in parts.manifests.items()},
        facts={},
    )
    final = run.report_page
    if reuse and finished(run.report, manifest) is not None:
        return final
    samples = _samples(run, limits, questions)
    page = _page(run, parts, samples, language())
    with publishing(run.report, manifest, overwrite=True) as staging:
        (staging.path / ANSWERS).write_text(_recorded(samples), encoding="utf-8", newline="\n")
        (staging.path / run.report_page.name).write_text(render(page, language()), encoding="utf-8", newline="\n")
    return final


def _recorded(samples: Samples) -> str:
    """Return what was asked and answered, as JSON; rows that a training held out are its owner's, and are left out."""
    shared = [] if samples.heldout else list(samples.questions)
    voices = [(voice.who, [answer.text for answer in voice.answers]) for voice in samples.voices if shared]
    return json.dumps({"questions": shared, "answers": voices}, ensure_ascii=False, indent=2) + "\n"


def _samples(run: Run, limits: Limits, questions: Sequence[str]) -> Samples:
    if limits.count == 0 and not questions:
        return Samples(missing=phrase("page.samples_off"))
    try:
        chosen = list(questions) or ask.questions_of(run, limits.count)
    except AegisError as error:
        return Samples(missing=error.what)
    return Samples(chosen, ask.ask(run, chosen, limits) if chosen else (), heldout=not questions)


def _page(run: Run, parts: RunParts, samples: Samples, reader: Language) -> Page:
    label = words("page", reader)
    training, result = parts.training, parts.training.result if parts.training else None
    try:
        verdict, why = read_verdict(run)
    except IntegrityError as error:
        verdict, why = None, error.what
    files = parts.gguf_files
    return Page(
        title=parts.exported.name if parts.exported else run.root.resolve().name,
        state="not_verified" if verdict is None else "not_proven" if why else "proven",
        why=why,
        headline={
            "base": public(training.base_model if training else None),
            "steps": as_number(result and result.steps, ",.0f"),
            "heldout_loss": as_number(result and result.heldout_loss, ".4f"),
            "before_after": sections.before_and_after(verdict, parts.exported),
            "size": format_bytes(parts.manifests["export"].files[files[0]].bytes) if files else "-",
        },
        questions=samples.questions,
        voices=samples.voices,
        heldout=samples.heldout,
        no_samples=samples.missing or ("" if samples.questions else label["no_questions"]),
        sections=[
            sections.training_section(run, parts, read_metrics(run.metrics), label),
            sections.data_section(parts),
            sections.merge_section(parts),
            sections.export_section(parts),
            sections.verify_section(run, parts, verdict, why, reader),
            sections.files_section(parts),
        ],
        settings=parts.settings(),
        commands=sections.commands(parts),
        versions=next((found.versions for found in parts.manifests.values()), {}),
    )
