"""The parts of a run that a report is about: manifests and facts of its finished stages, and why others are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from aegis.config.places import place_settings
from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError
from aegis.report.values import as_text, public
from aegis.runs.facts import AdapterFacts, ExportFacts, MergeFacts, VerifyFacts
from aegis.runs.facts_base import Facts
from aegis.runs.manifest import MANIFEST, Manifest, read_manifest
from aegis.runs.run import Run

PARTS = {"training": "adapter", "merge": "merged", "export": "gguf", "verify": "verify"}
"""The folder of each part by its label."""

FactsOfStage = TypeVar("FactsOfStage", bound=Facts)


@dataclass
class RunParts:
    """The manifests and facts of a run's finished stages by label, and the reasons why others are missing."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    training: AdapterFacts | None = None
    merged: MergeFacts | None = None
    exported: ExportFacts | None = None

    @classmethod
    def of(cls, run: Run) -> RunParts:
        """Read the manifests of a run."""
        parts = cls()
        parts.training = parts._read(run, "training", AdapterFacts, TrainConfig)
        parts.merged = parts._read(run, "merge", MergeFacts, MergeConfig)
        parts.exported = parts._read(run, "export", ExportFacts, ExportConfig)
        parts._read(run, "verify", VerifyFacts, VerifyConfig)
        return parts

    def _read(self, run: Run, name: str, kind: type[FactsOfStage], settings: type[StageConfig]) -> FactsOfStage | None:
        folder = PARTS[name]
        try:
            manifest = read_manifest(run.root / folder)
            facts = kind.of(manifest)
            recorded_config(manifest, settings)
        except IntegrityError as error:
            # a local path is private, so the page does not show it
            there = (run.root / folder / MANIFEST).is_file()
            self.missing[name] = f"{folder}/{MANIFEST}: {error.why}" if there else f"{folder}/"
            return None
        self.manifests[name] = manifest
        return facts

    def settings(self) -> dict[str, dict[str, str]]:
        """Return every stage's settings as text."""
        private = place_settings()
        return {
            name: {
                key: public(value) if key in private else as_text(value) for key, value in sorted(found.config.items())
            }
            for name, found in self.manifests.items()
        }

    @property
    def gguf_files(self) -> list[str]:
        """The names of the GGUF files; the file to run comes first."""
        return [] if self.exported is None else list(self.exported.files.values())
