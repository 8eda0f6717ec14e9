"""Checks a run's files without running a model: each is the one that was published, and made from the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aegis.background import stop_if_asked
from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import AegisError, EnvironmentFault, IntegrityError
from aegis.merging.merged_weights import SLAB_BYTES
from aegis.messages import Bilingual, bilingual
from aegis.model.adapter import WEIGHTS
from aegis.model.base import read_config
from aegis.model.shards import ShardSet
from aegis.runs.facts import AdapterFacts, ExportFacts, MergeFacts
from aegis.runs.facts_base import Facts
from aegis.runs.manifest import Manifest, file_sha256, verify_directory
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.verification.findings import Check
from aegis.verification.gguf_checks import check_f16, check_pieces

_RECORDED: dict[str, tuple[type[Facts], type[StageConfig]]] = {
    "train": (AdapterFacts, TrainConfig),
    "merge": (MergeFacts, MergeConfig),
    "convert": (ExportFacts, ExportConfig),
}
"""What the manifests of a run's parts record."""


class Checks:
    """Collects checks; a check that raises an `AegisError` has failed, and the error is its detail.

    Attributes:
        done: the checks so far, in their order.
        stop: set by another thread to end the checks.
    """

    def __init__(self) -> None:
        self.done: list[Check] = []
        self.stop: threading.Event | None = None

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.done)

    @contextmanager
    def check(self, name: Bilingual, stage: str) -> Iterator[Callable[[Bilingual], None]]:
        """Run the block as one check; the block may call the function with details, and raises to fail.

        Raises:
            InterruptedError: `stop` is set; a long block looks at it too.
            EnvironmentFault: the block raised it.
        """
        stop_if_asked(self.stop)
        details: list[Bilingual] = []
        try:
            yield details.append
        except EnvironmentFault:
            raise  # a full disk is not the run's fault
        except AegisError as error:
            self.done.append(Check(name, stage, False, error.text))
        else:
            self.done.append(Check(name, stage, True, Bilingual.joined("; ", details)))


def published_part(stage: str, directory: Path) -> Manifest:
    """Return the manifest of a run's part, after a check of its files and of the facts and settings that it records.

    Args:
        stage: as in `Run.verified_parts`.

    Raises:
        IntegrityError: a file is missing or changed, or the stage cannot have recorded this.
    """
    manifest = verify_directory(directory)
    facts, settings = _RECORDED[stage]
    facts.of(manifest)
    recorded_config(manifest, settings)
    return manifest


def check_published(checks: Checks, run: Run) -> None:
    """Hash every published file, and check that each stage worked on what the stage before it published."""
    manifests: dict[str, Manifest] = {}
    for stage, directory in run.verified_parts.items():
        with checks.check(bilingual("structure.files", folder=directory.name), stage) as detail:
            manifests[stage] = published_part(stage, directory)
            detail(bilingual("structure.files_published", count=len(manifests[stage].files)))
    if "merge" in manifests and "train" in manifests:
        with checks.check(bilingual("structure.merged_from"), "merge"):
            inputs = manifests["merge"].inputs
            for name, path in (("adapter", run.adapter / WEIGHTS), ("soul", run.adapter / SOUL_FILE)):
                if inputs.get(name) != file_sha256(path):
                    raise IntegrityError("structure.other_input", merged=run.merged, name=name, path=path)
            if inputs.get("base") != manifests["train"].inputs.get("base"):
                raise IntegrityError("structure.other_base", merged=run.merged)
    if "convert" in manifests and "merge" in manifests:
        with checks.check(bilingual("structure.converted_from"), "convert"):
            if manifests["convert"].inputs.get("model") != manifests["merge"].files_digest:
                raise IntegrityError("structure.other_folder", gguf=run.gguf, merged=run.merged)


def check_stock(checks: Checks, merged: Path) -> None:
    """Check that any program can read a merged folder: its head is untied, and it has no code and no AEGIS tensors."""
    with checks.check(bilingual("structure.stock"), "merge"):
        config = read_config(merged)
        if config.get("tie_word_embeddings") is not False:
            raise IntegrityError("structure.tied", merged=merged)
        if "auto_map" in config or list(merged.glob("*.py")):
            raise IntegrityError("structure.code", merged=merged)
        if odd := [name for name in ShardSet.open(merged).entries if "soul" in name or "lora" in name]:
            raise IntegrityError("structure.foreign_tensors", merged=merged, odd=odd[0])


def check_finite(checks: Checks, merged: Path) -> None:
    """Check that every value of the merged shards is finite."""
    with checks.check(bilingual("structure.finite"), "merge") as detail:
        entries = ShardSet.open(merged).entries
        for entry in entries.values():
            for start, stop in entry.slabs(SLAB_BYTES):
                rows = entry.read(start, stop)
                if rows.is_floating_point() and not torch.isfinite(rows).all():
                    raise IntegrityError("structure.holds_nan_inf", entry_name=entry.name)
        detail(bilingual("structure.tensors", count=len(entries)))


def check_converted(checks: Checks, f16: Path, merged: Path, config: dict[str, Any], tokenizer: Any) -> None:
    """Compare the f16 GGUF with the folder: head, template, add_bos, rope tensors, vocabulary and special tokens."""
    with checks.check(bilingual("structure.converted"), "convert"):
        check_f16(f16, ShardSet.open(merged), config, tokenizer)
    with checks.check(bilingual("structure.vocabulary"), "convert") as detail:
        detail(bilingual("structure.tokens", count=check_pieces(f16, tokenizer)))
