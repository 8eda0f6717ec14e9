"""The result of a quantization study, and the rule by which it recommends a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from aegis.messages import bilingual
from aegis.verification.findings import Divergence
from aegis.verification.report_file import read_versioned

SCHEMA = "aegis-quantize-study"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Speed:
    """Median tokens per second in llama.cpp on this machine: `reading` texts at once, `writing` token by token."""

    reading: float
    writing: float


@dataclass(frozen=True)
class Measured:
    """The measurements of one file.

    Attributes:
        found: its divergence from f16.
        same_as: an earlier variant with the same bytes, whose numbers were taken; else None.
    """

    quant: str
    variant: str
    bytes: int
    sha256: str
    found: Divergence
    perplexity: float
    speed: Speed
    same_as: str | None = None


@dataclass(frozen=True)
class NotBuilt:
    """A combination that was not built; the text of its reason is the message `not_built.REASON`."""

    quant: str
    variant: str
    reason: Literal["needs_imatrix"]


@dataclass(frozen=True)
class Reference:
    """The f16 file, which all others are compared with."""

    bytes: int
    sha256: str
    perplexity: float
    speed: Speed


@dataclass(frozen=True)
class Importance:
    """The file and the text that the importance matrix was made from, by their sha256."""

    gguf_sha256: str
    text_sha256: str
    tokens: int
    chunk_tokens: int


@dataclass(frozen=True)
class Study:
    """All results of a study.

    Attributes:
        tokens: number of measured tokens; the importance matrix was made from other text.
        tolerance: in nats; see `rule`.
        left: the combinations that were not built.
    """

    tokens: int
    tolerance: float
    reference: Reference
    measured: tuple[Measured, ...]
    left: tuple[NotBuilt, ...]
    importance: Importance | None

    @property
    def rule(self) -> str:
        """The rule that chooses the recommended file."""
        return (
            f"the smallest file whose mean KL is at most {self.tolerance:g} nats above the lowest one "
            f"(where f16 is right, that is {100 * self.tolerance:.3g} % of perplexity)"
        )

    @property
    def recommended(self) -> Measured:
        """The file that `rule` chooses; for equal sizes the one nearer to f16, then the variant that came first."""
        return recommend(self.measured, self.tolerance)

    @property
    def front(self) -> tuple[Measured, ...]:
        """The files that no other file beats in both size and KL, by size."""
        return pareto_front(self.measured)

    def as_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        front = self.front
        chosen = self.recommended
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "tokens": self.tokens,
            "rule": self.rule,
            "tolerance": self.tolerance,
            "recommended": {"quant": chosen.quant, "variant": chosen.variant},
            "reference": asdict(self.reference),
            "measured": [{**asdict(row), "front": row in front} for row in self.measured],
            "left": [{**asdict(row), "reason": bilingual(f"not_built.{row.reason}").recorded()} for row in self.left],
            "importance": asdict(self.importance) if self.importance else None,
        }


def recommend(measured: Sequence[Measured], tolerance: float) -> Measured:
    """Return the smallest of the files whose mean KL is within `tolerance` nats of the lowest."""
    limit = min(row.found.mean_kl for row in measured) + tolerance
    return min((row for row in measured if row.found.mean_kl <= limit), key=lambda row: (row.bytes, row.found.mean_kl))


def pareto_front(measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """Return the files that no other file beats in both size and KL, by size, each file once."""
    front: list[Measured] = []
    for row in sorted(measured, key=lambda row: (row.bytes, row.found.mean_kl)):
        if not front or row.found.mean_kl < front[-1].found.mean_kl:
            front.append(row)
    return tuple(front)


def read_study(path: Path) -> dict[str, Any]:
    """Read a study's report.json.

    Raises:
        IntegrityError: it is damaged, or has another version.
    """
    return read_versioned(path, SCHEMA, SCHEMA_VERSION, damaged="study.no_report", other="study.other_version")
