"""The layout of a run, the directory that holds everything from checkpoints to GGUF.

    <run>/run.lock                     locked while a stage works here
    <run>/checkpoints/step_000100/     states that training can resume from
    <run>/kept/                        the kept text of the training
    <run>/metrics.jsonl                one row per logging step
    <run>/answers.jsonl                what the model answered while it was trained
    <run>/pictures/                    plots of the training
    <run>/adapter/                     train's result: LoRA adapter and soul
    <run>/merged/                      merge's result: a stock model folder
    <run>/gguf/                        export's result: GGUF files and Modelfile
    <run>/verify/                      verify's report and plot
    <run>/.verify.staging-*/           what verify needs while it runs: logits, and export's f16 file in `aegis run`
    <run>/study/                       quantize-study's report, plot and importance matrix
    <run>/report/                      everything on one HTML page

Every published directory has a manifest.json with its stage, inputs and settings, and each file's size and sha256. A
directory appears under its final name by one rename, when it is complete, or not at all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aegis.errors import IntegrityError, UsageError
from aegis.runs import disk, named_paths
from aegis.runs.facts import ExportFacts
from aegis.runs.lock import PID, locked
from aegis.runs.manifest import Manifest, read_manifest

ARTIFACTS = Path("artifacts")
"""The folder of runs without --run."""
REPORT = "report.json"
"""The report of verify, and that of quantize-study."""
DIVERGENCE_PLOT = "divergence.png"
STUDY_PLOT = "study.png"
IMATRIX = "imatrix.gguf"
"""The importance matrix in quantize-study's folder."""


@dataclass(frozen=True)
class Run:
    """The paths in a run directory."""

    root: Path

    @classmethod
    def named_after(cls, base_model: str) -> Run:
        """Return the run of a command without --run: artifacts/<name of the base>."""
        return cls(ARTIFACTS / disk.file_stem(Path(base_model).name, otherwise="run"))

    @classmethod
    def known(cls) -> list[Run]:
        """The runs in artifacts/, the one that was used last at the end."""
        found = [cls(path) for path in ARTIFACTS.glob("*") if path.is_dir() and not path.name.startswith(".")]
        # a training that is still being prepared has only its lock
        signs = ("checkpoints", "adapter", "metrics.jsonl", PID)
        runs = [run for run in found if any((run.root / sign).exists() for sign in signs)]
        return sorted(runs, key=lambda run: run.root.stat().st_mtime)

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def kept(self) -> Path:
        return self.root / "kept"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.root / "answers.jsonl"

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def gguf(self) -> Path:
        return self.root / "gguf"

    @property
    def unproven_gguf(self) -> Path:
        """Where `aegis run` moves an export that verify found at fault."""
        return self.root / "gguf.failed"

    @property
    def verify(self) -> Path:
        return self.root / "verify"

    @property
    def study(self) -> Path:
        return self.root / "study"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def report_page(self) -> Path:
        return self.report / "report.html"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that `aegis run` replaces or removes."""
        trained = (self.checkpoints, self.kept, self.pictures, self.adapter)
        return (*trained, self.merged, self.gguf, self.unproven_gguf, self.verify, self.report)

    @property
    def verified_parts(self) -> dict[str, Path]:
        """The directories that verify examines, in the pipeline's order, under the stages' names in its report."""
        return {"train": self.adapter, "merge": self.merged, "convert": self.gguf}

    def made_anew(self, verified: Manifest) -> Path | None:
        """Return the first directory that is not the one that was verified; None if the verdict is about them all.

        It must have every byte that was verified: the same settings and inputs may have made other files since.

        Args:
            verified: the manifest of a verification. One of an older AEGIS does not name the files that it was about,
                so that every directory counts as made anew.

        Raises:
            IntegrityError: a directory's manifest is missing or damaged.
        """
        for stage, directory in self.verified_parts.items():
            if read_manifest(directory).exact_identity != verified.inputs.get(stage):
                return directory
        return None

    def require_finished(self, *stages: str) -> None:
        """Refuse a run that lacks what these stages publish; without any, what train, merge or export-gguf publishes.

        Raises:
            IntegrityError: naming the first stage that has to be run.
        """
        places = {"train": self.adapter, "merge": self.merged, "export-gguf": self.gguf}
        if all(places[stage].is_dir() for stage in stages or places):
            return
        stage, directory = next((stage, place) for stage, place in places.items() if not place.is_dir())
        raise IntegrityError("runs.unfinished", run_root=self.root, directory_name=directory.name, stage=stage)

    def require_training(self) -> None:
        """Refuse a run whose training has no result yet.

        Raises:
            UsageError: naming the command that goes on.
        """
        if not self.adapter.is_dir():
            raise UsageError("report.no_training", run_root=self.root)

    def published(self, part: Literal["gguf", "merged"]) -> Path:
        """Return the folder of a part that can be shared.

        Raises:
            UsageError: it is not made yet; naming the command that makes it.
        """
        directory, stage = (self.gguf, "export-gguf") if part == "gguf" else (self.merged, "merge")
        if not directory.is_dir():
            raise UsageError("push.no_part", run_root=self.root, part=part, stage=stage)
        return directory

    def first_gguf(self) -> Path:
        """Return the path of the exported file to run.

        Raises:
            IntegrityError: there is none, or the manifest is damaged.
        """
        path = self.gguf / ExportFacts.read(self.gguf).first
        if not named_paths.is_file(path):
            raise IntegrityError("runs.no_gguf", gguf=self.gguf, run_root=self.root)
        return path

    def lock(self) -> AbstractContextManager[None]:
        """Lock the run for this process while the block runs.

        Raises:
            LockedError, UsageError, EnvironmentFault: as `runs.lock.locked`.
        """
        return locked(self.root)
