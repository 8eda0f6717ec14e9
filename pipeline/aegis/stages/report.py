"""report: everything a run's directories say of it, with its pictures, in one HTML file.

What is missing is said to be missing: a report can be made of a training alone, or of a run whose parts are damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.report import sections
from aegis.runs.disk import human
from aegis.errors import IntegrityError, UsageError
from aegis.runs.manifest import Manifest, finished
from aegis.messages import Language, words
from aegis.verification.verdict import verdict_of_run
from aegis.runs.publish import publishing
from aegis.report.page import Page, render
from aegis.chat.answers import Voice
from aegis.runs.run import Run
from aegis.report.sections import Parts
from aegis.runs.metrics import read_metrics

PAGE = "report.html"


@dataclass(frozen=True)
class Samples:
    """What was asked and answered; `missing` says why nothing was."""

    questions: Sequence[str] = ()
    voices: Sequence[Voice] = ()
    heldout: bool = False
    missing: str = ""


def write_report(
    run: Run, language: Language, samples: Callable[[], Samples], asked: Mapping[str, Any], *, reuse: bool = False
) -> Path:
    """Write report/report.html into a run, in the place of an older one.

    Args:
        samples: asks the models, which takes its time; not called if there is nothing to do.
        asked: the settings of the asking.
        reuse: keep a report that was made so of the same parts.

    Raises:
        UsageError: the run holds no training.
        EnvironmentFault: the disk is full.
    """
    if not run.adapter.is_dir():
        raise UsageError("report.no_training", run_root=run.root)
    parts = Parts.of(run)
    manifest = Manifest(
        stage="report",
        config={"language": language, **asked},
        inputs={name: found.identity for name, found in parts.manifests.items()},
        facts={},
    )
    final = run.report / PAGE
    if reuse and finished(run.report, manifest) is not None:
        return final
    page = _page(run, parts, samples(), language)
    with publishing(run.report, manifest, overwrite=True) as staging:
        (staging.path / PAGE).write_text(render(page, language), encoding="utf-8", newline="\n")
    return final


def _page(run: Run, parts: Parts, samples: Samples, language: Language) -> Page:
    label = words("page", language)
    training = parts.facts("training")
    try:
        verdict, why = verdict_of_run(run)
    except IntegrityError as error:
        verdict, why = None, error.what
    files = parts.gguf_files
    return Page(
        title=str(parts.facts("export").get("name") or run.root.resolve().name),
        state="not_verified" if verdict is None else "not_proven" if why else "proven",
        why=why,
        headline={
            "base": sections.public(training.get("base_model")),
            "steps": sections.number(training.get("steps"), ",.0f"),
            "heldout_loss": sections.number(training.get("heldout_loss"), ".4f"),
            "gate": sections.number(training.get("gate"), ".4f"),
            "size": human(parts.manifests["export"].files[files[0]].bytes) if files else "-",
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
            sections.verify_section(run, parts, verdict, why, language),
            sections.files_section(parts),
        ],
        settings=parts.settings(),
        commands=sections.commands(parts),
        versions=next((found.versions for found in parts.manifests.values()), {}),
    )
