"""The result of a verification: checks, steps between models, retention of the base, and the failed stage."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aegis.errors import IntegrityError
from aegis.messages import Bilingual, phrase
from aegis.runs.manifest import MANIFEST, verify_directory
from aegis.runs.run import REPORT, Run
from aegis.verification.findings import NO_BOUNDS, BaseRetention, Bounds, Check, Divergence
from aegis.verification.report_file import read_versioned

SCHEMA = "aegis-verify-report"
SCHEMA_VERSION = 5
_CAVEATS = frozenset({"merged.skipped", "quantized.no_imatrix"})
"""Keys of details that say what a passed check could not cover."""
STAGES = ("train", "merge", "convert", "quantize")


@dataclass(frozen=True)
class Step:
    """The comparison of two neighbouring models.

    Attributes:
        stage: the stage that made the second model.
        bounds: the upper bounds.
        rounding: whether the two may differ by rounding only.
        finish: whether the training ended with the weights of the second model.
    """

    name: str
    stage: str
    found: Divergence
    bounds: Bounds = NO_BOUNDS
    rounding: bool = False
    finish: bool = False

    @property
    def max_kl(self) -> float | None:
        """The bound on the mean KL."""
        return self.bounds.mean_kl

    @property
    def broken(self) -> list[str]:
        """The names of the exceeded bounds."""
        return self.bounds.broken(self.found)

    @property
    def ok(self) -> bool:
        return not self.broken

    def broken_bound(self, name: str) -> str:
        """Return a bound and the found value as text."""
        return f"{name} {getattr(self.found, name):.3g} > {getattr(self.bounds, name):.3g}"

    @property
    def reason(self) -> str:
        """The reason for these bounds, or for having none."""
        if self.rounding:
            return "rounding to 16 bit, and nothing else, may lie between these two"
        if self.finish:
            return "the training ended with the weights of this file"
        if self.bounds.mean_kl is not None:
            return "a change of precision, with the bound that was asked for"
        return "a change of precision: reported, without a bound"


@dataclass(frozen=True)
class Nearness:
    """The distances of a shipped file and of the base from the trained model, on the same tokens.

    Attributes:
        name: the file's quantization type.
        shipped, base: mean KL from the trained model, in nats.
        widening: mean KL trained → wide: from NF4 weights, as in training, to 16-bit weights.
        rounding: mean KL f16 → this file.
    """

    name: str
    shipped: float
    base: float
    widening: float
    rounding: float

    @property
    def nearer(self) -> bool:
        return self.shipped < self.base

    @property
    def precision(self) -> float:
        """The largest distance from the trained model that the two changes of precision explain, in nats.

        A small KL is like a squared distance, so at most the square roots add up. Rounding can make a KL of zero
        slightly negative.
        """
        return (math.sqrt(max(self.widening, 0.0)) + math.sqrt(max(self.rounding, 0.0))) ** 2

    @property
    def too_small(self) -> bool:
        """Whether the training changed the model by less than the changes of precision do."""
        return not self.nearer and self.base <= self.precision

    @property
    def ok(self) -> bool:
        return self.nearer or self.too_small

    @property
    def stage(self) -> str:
        """The stage that moved the file further from the trained model."""
        return "merge" if self.widening >= self.rounding else "quantize"


@dataclass(frozen=True)
class BaseComparison:
    """One choice of merge's `base_weights`, measured on the same tokens as everything else.

    Attributes:
        name: the choice.
        merged: whether the run was merged with it.
        found: the divergence from the model as trained.
    """

    name: str
    merged: bool
    found: Divergence
    perplexity: float


@dataclass(frozen=True)
class Verdict:
    """All results of a verification.

    Attributes:
        perplexity: of each model, and of the base, on the compared text.
        retained: base and result on kept text, if there is any, and on other text.
        summary: one sentence about these.
    """

    tokens: int
    checks: tuple[Check, ...]
    steps: tuple[Step, ...]
    perplexity: dict[str, float]
    retained: tuple[BaseRetention, ...] = ()
    bases: tuple[BaseComparison, ...] = ()
    nearness: tuple[Nearness, ...] = ()
    vocab_size: int = 0
    summary: Bilingual | None = None

    @property
    def failed_stage(self) -> str | None:
        """The first stage, in the pipeline's order, with a failure."""
        failed = {check.stage for check in self.checks if not check.ok}
        failed |= {step.stage for step in self.steps if not step.ok}
        failed |= {near.stage for near in self.nearness if not near.ok}
        failed |= {"train" for found in self.retained if not found.ok}
        return next((stage for stage in STAGES if stage in failed), None)

    @property
    def left_open(self) -> list[Bilingual]:
        """The details that say what was not checked."""
        details = [part for check in self.checks for part in (check.detail, *check.detail.parts)]
        return [part for part in details if part.key in _CAVEATS]

    @property
    def failures(self) -> list[str]:
        """One line per failure, in the pipeline's order."""
        lines = [(check.stage, f"{check.name.shown}: {check.detail.shown}") for check in self.checks if not check.ok]
        lines += [
            (step.stage, phrase("verdict.step", name=step.name, bounds=", ".join(map(step.broken_bound, step.broken))))
            for step in self.steps
            if not step.ok
        ]
        lines += [
            (near.stage, phrase("verdict.not_nearer", name=near.name, shipped=near.shipped, base=near.base))
            for near in self.nearness
            if not near.ok
        ]
        lines += [
            ("train", phrase("verdict.not_kept", tokens=found.tokens, kl=found.kl, bound=found.max_kl))
            for found in self.retained
            if not found.ok
        ]
        return [f"{stage}: {line}" for stage, line in sorted(lines, key=lambda pair: STAGES.index(pair[0]))]

    def as_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "ok": self.failed_stage is None,
            "failed_stage": self.failed_stage,
            "tokens": self.tokens,
            "checks": [check.as_json() for check in self.checks],
            "steps": [
                {**asdict(step), "ok": step.ok, "reason": step.reason, "max_kl": step.max_kl, "broken": step.broken}
                for step in self.steps
            ],
            "nearness": [{**asdict(near), "ok": near.ok} for near in self.nearness],
            "perplexity": self.perplexity,
            "retained": [found.as_json() for found in self.retained],
            "summary": self.summary.recorded() if self.summary else None,
            "bases": [asdict(choice) for choice in self.bases],
        }


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        IntegrityError: it is damaged, or has another version.
    """
    report = read_versioned(path, SCHEMA, SCHEMA_VERSION, damaged="verdict.no_report", other="verdict.other_version")
    if not isinstance(report.get("ok"), bool):
        raise IntegrityError("verdict.incomplete", path=path)
    return report


def read_verdict(run: Run) -> tuple[dict[str, Any] | None, str]:
    """Read verify's report about the run's current files.

    Returns:
        The report, None if it is missing or about other files; and the reason why it is not a pass, "" if it is one.

    Raises:
        IntegrityError: a manifest or the report is damaged.
    """
    if not (run.verify / MANIFEST).is_file():
        return None, phrase("verdict.not_run")
    manifest = verify_directory(run.verify)
    if (changed := run.made_anew(manifest)) is not None:
        return None, phrase("verdict.made_anew", folder=changed.name)
    report = read_report(run.verify / REPORT)
    return report, "" if report["ok"] else phrase("verdict.found_fault", failed_stage=report["failed_stage"])
