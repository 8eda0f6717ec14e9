"""plan: what a whole run would take, from shapes, the data and this machine; nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from aegis import progress
from aegis.config.advice import harmful_settings
from aegis.config.settings import DEMO, ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.data.report import DataReport
from aegis.data.sources import is_hub_dataset
from aegis.data.training_set import load_training_set
from aegis.merging.plan import DTYPES
from aegis.messages import phrase
from aegis.model.base import Base, load_tokenizer, peek_base
from aegis.model.base_states import states_bytes
from aegis.model.load import require_device
from aegis.model.lora import Coverage
from aegis.model.shards import HEAD, ShardSet
from aegis.runs import disk
from aegis.runs.disk import checkpoints_bytes, gguf_bytes
from aegis.runs.facts import ExportFacts
from aegis.runs.manifest import verify_directory
from aegis.runs.run import Run
from aegis.training.execution.allocator import cap_bytes, free_bytes, usable_bytes
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.planner import MemoryPlan, MemoryPlanner
from aegis.verification.tokenizer_precheck import check_vocabulary

_PROBE_SIZE, _PROBE_SECONDS = {"cuda": 8192, "cpu": 1024}, 0.3

NeedName = Literal[
    "disk_run", "disk_scratch", "disk_download", "gpu_memory_verify", "ram_kept", "ram_training", "ram_verify"
]


@dataclass(frozen=True)
class Need:
    """Something that needs room.

    Attributes:
        what: its name; for people it is the text `need.WHAT`.
        bytes: at most.
        free_bytes: what there is; None for a GPU that is not here.
    """

    what: NeedName
    bytes: int
    free_bytes: int | None
    where: str = ""


@dataclass(frozen=True)
class PlanReport:
    """All that can be said before a run.

    Attributes:
        base_bytes: of the whole base as training holds it.
        data: None, with the reason in `data_missing`, where the rows could not be looked at.
        variants: memory while training on `device`, the config's own way among them.
        free_bytes: of that device's memory; None if it is not here.
        cap_bytes: what training may hold of a GPU's at most; None if that is all of it.
        needs: disks and memory, at their fullest.
        flops_per_second: of one big matrix product, measured now; None if the device is not here. Tokens times FLOP a
            token by this is the least time, if steps were nothing but matrix products.
    """

    base: str
    revision: str | None
    folder: str
    here: bool
    model_type: str
    parameters: int
    base_bytes: int
    data: DataReport | None
    data_missing: str
    targets: tuple[Coverage, ...]
    adapter_parameters: int
    soul_parameters: int
    device: str
    free_bytes: int | None
    cap_bytes: int | None
    layers: int
    compiled: bool
    variants: tuple[MemoryPlan, ...]
    needs: tuple[Need, ...]
    tokens: int
    flops_per_token: float
    flops_per_second: float | None

    @property
    def usable_bytes(self) -> int | None:
        """What a step may fill of the cap, of which the allocator needs the rest; None without a cap."""
        return None if self.cap_bytes is None else usable_bytes(self.cap_bytes)


def plan(train: TrainConfig, merge: MergeConfig, export: ExportConfig, verify: VerifyConfig, run: Run) -> PlanReport:
    """Look at base, data and machine, and work out what train, merge, export-gguf and verify would take.

    Raises:
        UsageError, EnvironmentFault, UnsupportedModelError, DataError: as the stages would.
    """
    for advice in harmful_settings(train):
        progress.warn(advice)
    device = _device(train)
    with peek_base(train.base_model, train.revision) as base:
        kind: Literal["cuda", "cpu"] = "cuda" if device is None or device.type == "cuda" else "cpu"
        capability = torch.cuda.get_device_capability(device) if device and kind == "cuda" else None
        with progress.task(phrase("plan.memory"), 5, "way") as bar:
            estimator = MemoryEstimator(base.folder, train, kind, capability)
            bar.advance()
            free = _free_memory(device) if device else None
            cap = cap_bytes(train.gpu_memory_gib, device)
            planner = MemoryPlanner(
                estimator, train, kind, min((room for room in (free, cap) if room is not None), default=None)
            )
            variants = []
            for variant in planner.neighbours():
                variants.append(variant)
                bar.advance()
        data, missing = _data(train, base)
        if (base.folder / "tokenizer_config.json").is_file():
            check_vocabulary(base, export.llama_cpp_dir, keep=False)
        tokens = train.max_steps * train.batch_size * train.gradient_accumulation_steps * train.max_length
        return PlanReport(
            base=base.name,
            revision=base.revision,
            folder=str(base.folder),
            here=any(base.folder.glob("*.safetensors")),
            model_type=str(base.config["model_type"]),
            parameters=estimator.parameters,
            base_bytes=estimator.base_bytes,
            data=data,
            data_missing=missing,
            targets=tuple(estimator.targets),
            adapter_parameters=estimator.trained["adapter"],
            soul_parameters=estimator.trained["soul"],
            device="CPU" if kind == "cpu" else torch.cuda.get_device_name(device) if device else "GPU",
            free_bytes=free,
            cap_bytes=cap,
            layers=estimator.layers,
            compiled=planner.compiled,
            variants=tuple(variants),
            needs=tuple(_needs(train, merge, export, verify, run, base, estimator, variants[0])),
            tokens=tokens,
            flops_per_token=_flops_per_token(estimator, variants[0].checkpointed_layers, train),
            flops_per_second=_matrix_rate(device) if device else None,
        )


def _device(config: TrainConfig | VerifyConfig) -> torch.device | None:
    """Where the work would be done; None for a GPU that was asked for and is not in this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        return None
    return require_device(config.device)


def _free_memory(device: torch.device) -> int:
    return free_bytes(device) if device.type == "cuda" else int(psutil.virtual_memory().available)


def _data(config: TrainConfig, base: Base) -> tuple[DataReport | None, str]:
    if base.name == DEMO and not (base.folder / "tokenizer_config.json").is_file():
        return None, phrase("plan.no_demo_base_yet")
    if config.dataset != DEMO and is_hub_dataset(config.dataset):
        return None, phrase("plan.hub_data")
    return load_training_set(config, load_tokenizer(base.folder), keep=False).report, ""


def _flops_per_token(estimator: MemoryEstimator, recomputed: int, config: TrainConfig) -> float:
    """Matrix products alone: forward, the gradient of the input, and forward again in the layers that are recomputed.

    The base is frozen, so no product goes into its own gradient; attention and the adapter come on top. A kept pass
    costs what a pass of the data does, and comes with every `keep_every`-th of these.
    """
    passes = 1 + (1 / config.keep_every if config.keep_weight else 0)
    return 2.0 * estimator.matrix_parameters * (2 + recomputed / estimator.layers) * passes


def _matrix_rate(device: torch.device) -> float:
    """Multiply-adds a second, times two, of one big product in the dtype that training computes in, tried now."""
    size = _PROBE_SIZE[device.type]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.ones(size, size, dtype=dtype, device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    matrix @ matrix
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _PROBE_SECONDS:
        matrix @ matrix
        wait()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began)


def _needs(
    train: TrainConfig,
    merge: MergeConfig,
    export: ExportConfig,
    verify: VerifyConfig,
    run: Run,
    base: Base,
    estimator: MemoryEstimator,
    way: MemoryPlan,
) -> Sequence[Need]:
    from huggingface_hub import constants

    weights = estimator.parameters
    trained = 4 * sum(estimator.trained.values())
    in_run = (
        checkpoints_bytes(trained, train.keep_checkpoints)
        + weights * DTYPES[merge.dtype].itemsize
        + gguf_bytes(weights, {"F16", *export.quant})
    )
    keeps_f16 = export.keep_f16 or "F16" in export.quant
    needs = [
        Need("disk_run", in_run, disk.free_bytes(run.root), str(run.root)),
        _verify_scratch(
            verify,
            4 + len(export.quant),
            int(base.config.get("vocab_size", 0)),
            0 if keeps_f16 else weights,
            keeps=train.keep_weight > 0,
        ),
        _verify_memory(verify, weights),
    ]
    if train.keep_weight:
        size = states_bytes(train.keep_windows, train.max_length, estimator.text.hidden_size, estimator.dtype)
        needs.append(Need("ram_kept", way.processes * size, psutil.virtual_memory().available))
    if way.host_bytes:
        host = way.processes * way.host_bytes
        needs.append(Need("ram_training", host, psutil.virtual_memory().available))
    if base.revision is not None and not any(base.folder.glob("*.safetensors")):
        hub = Path(constants.HF_HUB_CACHE)
        needs.append(Need("disk_download", 2 * weights, disk.free_bytes(hub), str(hub)))
    return needs


@dataclass(frozen=True)
class VerifyOutlook:
    """What verify would do in a finished run: models one after the other, tokens through each, room it needs."""

    models: tuple[str, ...]
    tokens: int
    scratch: Need
    memory: Need


def plan_verify(run: Run, config: VerifyConfig) -> VerifyOutlook:
    """Check that a run is whole, file by file, and say what verify would take; nothing is written.

    Raises:
        IntegrityError: the run is not finished, or a file is not what its manifest says.
    """
    run.require_finished()
    manifests = [verify_directory(directory) for directory in (run.adapter, run.merged, run.gguf)]
    shards = ShardSet.open(run.merged)
    weights = sum(math.prod(entry.shape) for entry in shards.entries.values())
    vocabulary = shards.entries[HEAD].shape[0]
    exported = ExportFacts.of(manifests[-1])
    models = ("trained", "wide", "merged", "f16", *exported.quantized)
    return VerifyOutlook(
        models, config.tokens,
        _verify_scratch(config, len(models), vocabulary, weights, keeps="kept" in manifests[0].inputs),
        _verify_memory(config, weights),
    )  # fmt: skip


def _verify_scratch(config: VerifyConfig, models: int, vocabulary: int, rebuilt_weights: int, *, keeps: bool) -> Need:
    """Float32 logits of every model and of the base, and the f16 file that is converted again.

    Base and result have other text too, and kept text if there is any.
    """
    place = tempfile.gettempdir()
    recordings = models + 1 + (4 if keeps else 2) + config.compare_bases
    needed = recordings * config.tokens * vocabulary * 4 + gguf_bytes(rebuilt_weights, ["F16"])
    return Need("disk_scratch", needed, disk.free_bytes(Path(place)), place)


def _verify_memory(config: VerifyConfig, weights: int) -> Need:
    """A whole model: float16 on a GPU, float32 on a CPU; llama.cpp maps its files, which can leave memory again."""
    device = _device(config)
    on_gpu = device is None or device.type == "cuda"
    name: NeedName = "gpu_memory_verify" if on_gpu else "ram_verify"
    width = 2 if on_gpu else 4
    return Need(name, width * weights, _free_memory(device) if device else None)
