"""Checks before the training the settings of merge and export, and the disk space that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aegis import progress
from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError
from aegis.llama_cpp import parse_quant, parse_tensor_type, read_importance, refuse_without_imatrix
from aegis.llama_cpp.ollama.modelfile import can_be_system
from aegis.merging.base_weights import round_trip_weights
from aegis.merging.merged_weights import DTYPES, head_entry
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.shards import HEAD
from aegis.runs import disk
from aegis.runs.facts import F16
from aegis.runs.run import Run
from aegis.verification.gguf_checks import vocabulary_bytes


@dataclass(frozen=True)
class Later:
    """The settings of the stages that follow a training.

    Attributes:
        is_certain: whether they follow in the same command, so that the disk needs space for their files too.
    """

    merge: MergeConfig = field(default_factory=lambda: MergeConfig.model_validate({}))
    export: ExportConfig = field(default_factory=lambda: ExportConfig.model_validate({}))
    is_certain: bool = False


def asked_quants(export: ExportConfig) -> tuple[str, ...]:
    """Return the quantization types to make, without duplicates, by llama.cpp's names.

    Raises:
        UsageError: a type is unknown.
    """
    quants = tuple(dict.fromkeys(parse_quant(name) for name in export.quant))
    if export.head_quant is not None:
        parse_tensor_type(export.head_quant)
    return quants


def refuse_unwritable(export: ExportConfig) -> None:
    """Refuse a system message that a Modelfile cannot hold.

    Raises:
        UsageError: it cannot.
    """
    if export.system is not None and not can_be_system(export.system):
        raise UsageError("export.system_text")


def check_later(base: Base, train: TrainConfig, later: Later, run: Run | None = None) -> None:
    """Refuse settings that merge or export would refuse, and check that the disk has space for the files of both.

    Args:
        run: the run that gets their files; None skips the check of the disk.

    Raises:
        UsageError: a quantization is unknown, a Modelfile cannot hold the system message, or an NF4 round trip is
            configured without training in NF4.
        IntegrityError: the importance matrix is none.
        UnsupportedModelError: no weight of the base can make the NF4 round trip.
        EnvironmentFault: the disk is too small for the stages that follow in this command.
    """
    quants = asked_quants(later.export)
    refuse_unwritable(later.export)
    if later.export.imatrix is not None:
        read_importance(later.export.imatrix)
    if run is None or not run.gguf.is_dir():  # files that are there already were made with one
        for quant in quants:
            refuse_without_imatrix(quant, later.export.imatrix)
    if later.merge.base_weights == "dequantized":
        if train.load_in != "4bit":
            raise UsageError("precheck.no_round_trip", load_in=train.load_in)
        round_trip_weights(base)
    if run is None:
        return
    shapes = [entry.shape for entry in ({HEAD: head_entry(base)} | {**base.shards.entries}).values()]
    here = sum(path.stat().st_size for part in (run.merged, run.gguf) for path in part.rglob("*") if path.is_file())
    needed = later_bytes(shapes, base.folder, later.merge, later.export) - here
    if later.is_certain:
        disk.require_space(run.root, needed, phrase("disk.merge_and_export"))
    elif (free := disk.free_bytes(run.root)) < needed:
        room = disk.format_bytes(free)
        progress.warn(phrase("precheck.disk_later", where=run.root, needed=disk.format_bytes(needed), free=room))


def later_bytes(shapes: Sequence[Sequence[int]], folder: Path, merge: MergeConfig, export: ExportConfig) -> int:
    """Return an upper bound on the bytes of the merged folder's weights and tokenizer and of all GGUF files.

    It is at least what merge and export ask for. The f16 file is included; see `gguf_bytes` for a head's own type.

    Args:
        shapes: those of the merged folder's tensors.
        folder: the base's, with its tokenizer.

    Raises:
        UsageError: a quantization is unknown.
    """
    vocabulary = vocabulary_bytes(folder)
    merged = sum(map(math.prod, shapes)) * DTYPES[merge.dtype].itemsize + vocabulary
    return merged + disk.gguf_bytes(shapes, vocabulary, {F16, *asked_quants(export)})
