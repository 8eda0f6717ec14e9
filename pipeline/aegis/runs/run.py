"""A run: one directory that holds everything from checkpoints to GGUF.

    <run>/run.lock                     held while a stage works here
    <run>/checkpoints/step_000100/     what training can go on from
    <run>/kept/                        the kept text, as it was trained on
    <run>/metrics.jsonl                one row a logging step
    <run>/pictures/                    what the training looked like
    <run>/adapter/                     train's result: LoRA adapter and soul
    <run>/merged/                      merge's result: a stock model folder
    <run>/gguf/                        export's result: GGUF files and Modelfile
    <run>/verify/                      verify's report and picture
    <run>/study/                       quantize-study's report, picture and importance matrix
    <run>/report/                      all of it on one page

Every published directory carries manifest.json: who made it from what, and each file's size and sha256. A directory
appears under its final name by one rename, when it is whole, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from aegis.errors import IntegrityError, LockedError, UsageError
from aegis.messages import phrase
from aegis.runs import disk
from aegis.runs.facts import ExportFacts

ARTIFACTS = Path("artifacts")
"""Where runs go that are given no place of their own."""
_LOCK = "run.lock"


@dataclass(frozen=True)
class Run:
    """Names of the places in a run directory."""

    root: Path

    @classmethod
    def named_after(cls, base_model: str) -> Run:
        """Where a run goes that was given no --run: artifacts/<name of the base>."""
        return cls(ARTIFACTS / disk.file_stem(Path(base_model).name, otherwise="run"))

    @classmethod
    def known(cls) -> list[Run]:
        """The runs in artifacts/, the one that was used last at the end."""
        found = [cls(path) for path in ARTIFACTS.glob("*") if path.is_dir() and not path.name.startswith(".")]
        runs = [run for run in found if any(place.exists() for place in (run.checkpoints, run.adapter, run.metrics))]
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
    def verify(self) -> Path:
        return self.root / "verify"

    @property
    def study(self) -> Path:
        return self.root / "study"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def require_finished(self) -> None:
        """Refuse a run that lacks what train, merge or export-gguf publishes.

        Raises:
            IntegrityError: naming the first stage that has to be run.
        """
        for directory, stage in ((self.adapter, "train"), (self.merged, "merge"), (self.gguf, "export-gguf")):
            if not directory.is_dir():
                raise IntegrityError("runs.unfinished", run_root=self.root, directory_name=directory.name, stage=stage)

    def first_gguf(self) -> Path:
        """The exported file to run.

        Raises:
            IntegrityError: there is none, or the manifest is damaged.
        """
        path = self.gguf / ExportFacts.read(self.gguf).first
        if not path.is_file():
            raise IntegrityError("runs.no_gguf", gguf=self.gguf, run_root=self.root)
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock of a process that died is taken over.

        Raises:
            LockedError: another process works here.
            UsageError: the directory cannot be made or written.
            EnvironmentFault: the disk is full.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.root / _LOCK)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LockedError("runs.locked", root=self.root, holder=_holder(self.root)) from None
        except OSError as error:
            if disk.is_full(error):
                raise disk.full(self.root, error) from error
            raise UsageError("runs.unusable", root=self.root, error=str(error)) from None
        pid_file = self.root / "run.pid"
        try:
            pid_file.write_text(str(os.getpid()), encoding="ascii")
            yield
        finally:
            pid_file.unlink(missing_ok=True)
            # a stage that refused its input leaves no trace of having been asked
            empty = self.root.is_dir() and {path.name for path in self.root.iterdir()} <= {_LOCK}
            if empty and os.name != "nt":
                # while it is still held, so that it is nobody else's; Windows lets no held file go
                (self.root / _LOCK).unlink(missing_ok=True)
            lock.release()
            if empty:
                with suppress(OSError):  # another run may have moved in
                    if os.name == "nt":
                        (self.root / _LOCK).unlink(missing_ok=True)
                    self.root.rmdir()


def _holder(root: Path) -> str:
    try:
        return phrase("runs.holder", process=(root / "run.pid").read_text(encoding="ascii"))
    except OSError:
        return ""
