"""verify_file (`aegis verify PATH`): checks one file or folder alone: soul, checkpoint, adapter, model folder, GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aegis.errors import UsageError
from aegis.model.adapter import CONFIG as ADAPTER_CONFIG
from aegis.runs.manifest import MANIFEST
from aegis.runs.run import REPORT
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import is_another
from aegis.verification import artifact_checks
from aegis.verification.findings import Check
from aegis.verification.run_checks import Checks

_PARTS = ("adapter", "merged", "gguf")

Kind = Literal["gguf", "soul", "report", "adapter", "model_folder", "study", "gguf_folder"]
"""The kinds of files and folders; the text of a kind is the message `kind.KIND`."""


@dataclass(frozen=True)
class FileReport:
    """The checked path, its kind, and all checks."""

    path: Path
    kind: Kind
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {"path": self.path, "kind": self.kind, "checks": [check.as_json() for check in self.checks]}

    @property
    def failed_stage(self) -> str | None:
        """The stage of the first failed check."""
        return next((check.stage for check in self.checks if not check.ok), None)


def verify_file(path: Path) -> FileReport:
    """Check one file or folder as far as possible without the rest of its run.

    Raises:
        UsageError: it does not exist, is not a product of AEGIS, or is a complete run.
    """
    checks = Checks()
    if path.is_file():
        kind = _file(checks, path)
    elif path.is_dir():
        kind = _directory(checks, path)
    else:
        raise UsageError("examine.nothing", path=path)
    return FileReport(path, kind, tuple(checks.done))


def _file(checks: Checks, path: Path) -> Kind:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise UsageError("examine.unreadable", path=path, error=str(error)) from None
    if start == b"GGUF" or path.suffix.lower() == ".gguf":
        artifact_checks.check_hash(checks, path, "convert")
        artifact_checks.check_gguf(checks, path)
        return "gguf"
    if path.suffix == ".safetensors" and path.name != SOUL_FILE and is_another(path):
        raise UsageError("examine.part_of_folder", path=path, folder=path.parent)
    if path.suffix == ".safetensors":
        artifact_checks.check_hash(checks, path, "train")
        artifact_checks.check_soul(checks, path, ours=(path.parent / MANIFEST).is_file())
        return "soul"
    if path.name == REPORT:
        artifact_checks.check_report(checks, path)
        return "report"
    raise UsageError("examine.unknown_file", path=path)


def _directory(checks: Checks, path: Path) -> Kind:
    if any((path / part).is_dir() for part in _PARTS):
        raise UsageError("examine.whole_run", path=path)
    if (path / ADAPTER_CONFIG).is_file():
        artifact_checks.check_checkpoint(checks, path)
        return "adapter"
    if (path / "config.json").is_file():
        artifact_checks.check_model(checks, path)
        return "model_folder"
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs or (path / REPORT).is_file():
        manifest = artifact_checks.check_hashes(checks, path, "convert" if ggufs else "verify")
        if manifest is not None and manifest.stage == "quantize-study":
            artifact_checks.check_study(checks, path / REPORT)
            return "study"
        for gguf in ggufs:
            artifact_checks.check_gguf(checks, gguf)
        if ggufs:
            return "gguf_folder"
        artifact_checks.check_report(checks, path / REPORT)
        return "report"
    raise UsageError("examine.unknown_folder", path=path)
