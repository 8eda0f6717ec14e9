"""plan: estimates what a complete run needs, from shapes, data and this machine; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from aegis import progress
from aegis.config.advice import warn_of_harm
from aegis.config.presets import DEMO
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.epochs import passes, windows_per_step, with_steps
from aegis.data.report import DataReport
from aegis.data.sources import is_hub_dataset
from aegis.data.training_set import load_training_set
from aegis.errors import EnvironmentFault
from aegis.hub.datasets import from_cache_only
from aegis.messages import phrase
from aegis.model.base import Base, peek_base
from aegis.model.base_states import states_bytes
from aegis.model.device import find_device, free_bytes
from aegis.model.empty_model import step_of_config
from aegis.model.lora_targets import Coverage
from aegis.model.shards import INDEX
from aegis.model.trained_base import with_template
from aegis.runs import disk
from aegis.runs.disk import checkpoints_bytes
from aegis.runs.facts import F16
from aegis.runs.run import Run
from aegis.runs.space_needs import Need
from aegis.training.execution.allocator import cap_bytes, usable_bytes
from aegis.training.finish_choice import plan_finish, types_with_room
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.finish_bytes import FinishPlan
from aegis.training.planning.machine import flops_per_token, matrix_rate
from aegis.training.planning.offload_or_checkpoint import MemoryPlan, MemoryPlanner
from aegis.verification.base_precheck import check_base
from aegis.verification.gguf_checks import vocabulary_bytes
from aegis.verification.run_precheck import Later, check_later, later_bytes
from aegis.verification.space_estimate import memory_needed, merged_shapes, scratch_needed
from aegis.verification.tokenizer_precheck import check_ids, converted_vocabulary, our_ids, sample_texts


@dataclass(frozen=True)
class PlanReport:
    """The estimates for a run.

    Attributes:
        base_bytes: bytes of the base as training holds it.
        data: the report on the rows; None, with the reason in `data_missing`, if they cannot be read now.
        variants: memory plans for `device`: the config's own and its neighbours.
        free_bytes: free bytes of that device's memory; None if the device is not in this machine.
        cap_bytes: limit of training's GPU memory; None without a limit.
        needs: upper bounds on disk space and memory.
        passes: how often the training sees the data; None if the rows cannot be read now.
        flops_per_second: measured for one large matrix product; None if the device is not in this machine. Tokens times
            FLOP per token, divided by this, is the minimum time, as if steps were only matrix products.
        finish: None for a training without one, or if it is not known yet.
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
    steps: int
    passes: float | None
    tokens: int
    flops_per_token: float
    flops_per_second: float | None
    finish: FinishPlan | None

    @property
    def usable_bytes(self) -> int | None:
        """The bytes of the cap that a step may fill, because the allocator needs the rest; None without a cap."""
        return None if self.cap_bytes is None else usable_bytes(self.cap_bytes)


def plan(train: TrainConfig, merge: MergeConfig, export: ExportConfig, verify: VerifyConfig, run: Run) -> PlanReport:
    """Estimate from base, data and machine what train, merge, export-gguf and verify need.

    Raises:
        UsageError, EnvironmentFault, UnsupportedModelError, DataError: as in the stages.
    """
    warn_of_harm(train)
    device = find_device(train.device)
    kind, capability = _kind(device)
    free, cap = free_bytes(device) if device else None, cap_bytes(train.gpu_memory_gib, device)
    room, later = min((limit for limit in (free, cap) if limit is not None), default=None), Later(merge, export)
    with peek_base(train.base_model, train.revision) as found:
        base = with_template(found, train.chat_template)
        # a folder of the user's with weights of any kind is checked, so that a broken one is not planned
        weights = ("*.safetensors", INDEX, "*.bin", "*.pt", "*.pth")
        here = any(found for pattern in weights for found in base.folder.glob(pattern))
        if not here and base.revision is None and not _is_unmade(base):
            progress.warn(phrase("plan.no_weights", folder=base.folder))
        with _vocabulary(base, export.llama_cpp_dir) as vocabulary:
            data, missing = _data(train, base, vocabulary)
            train = train if data is None else with_steps(train, data.windows)
            finish = plan_finish(train, base, later, vocabulary) if here else None
        types = types_with_room(finish, train, kind, capability, room)
        estimator, planner, variants = _memory_plans(base, train, kind, capability, room, types)
        if here:
            check_base(base, train.lora_targets, export.llama_cpp_dir, keep=False)
            check_later(base, train, later)
        return PlanReport(
            base=base.name,
            revision=base.revision,
            folder=str(base.folder),
            here=here,
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
            steps=train.max_steps,
            passes=passes(train, data.windows) if data is not None else None,
            tokens=train.max_steps * windows_per_step(train) * train.max_length,
            flops_per_token=flops_per_token(estimator, variants[0].checkpointed_layers, train),
            flops_per_second=matrix_rate(device) if device else None,
            finish=FinishPlan.of(finish.steps, finish.recipe.quant, estimator.finish) if finish and types else None,
        )


def _vocabulary(base: Base, tree: Path | None) -> AbstractContextManager[Path | None]:
    """Return a GGUF of the base's tokenizer for the block; None if base or converter is not on this machine yet."""
    return nullcontext() if _is_unmade(base) else converted_vocabulary(base, tree, keep=False)


def _is_unmade(base: Base) -> bool:
    return base.name == DEMO and not (base.folder / "tokenizer_config.json").is_file()


def _kind(device: torch.device | None) -> tuple[Literal["cuda", "cpu"], tuple[int, int] | None]:
    """Return the kind of device, and a GPU's compute capability; a machine without one plans for a GPU."""
    if device is None:
        return "cuda", None
    return ("cuda", torch.cuda.get_device_capability(device)) if device.type == "cuda" else ("cpu", None)


def _memory_plans(
    base: Base,
    train: TrainConfig,
    kind: Literal["cuda", "cpu"],
    capability: tuple[int, int] | None,
    room: int | None,
    finish_types: Mapping[str, str] | None,
) -> tuple[MemoryEstimator, MemoryPlanner, list[MemoryPlan]]:
    """Estimate the memory of the chosen plan and of its neighbours, with a bar."""
    variants = []
    with progress.task(phrase("plan.memory"), 5, "plan") as bar, step_of_config(base.folder):
        estimator = MemoryEstimator(base.folder, train, kind, capability, finish_types)
        bar.advance()
        planner = MemoryPlanner(estimator, train, kind, room)
        for variant in planner.neighbours():
            variants.append(variant)
            bar.advance()
    return estimator, planner, variants


def _data(config: TrainConfig, base: Base, vocabulary: Path | None) -> tuple[DataReport | None, str]:
    """Return the report on the rows; or None, and why they cannot be read now."""
    if _is_unmade(base):
        return None, phrase("plan.no_demo_base_yet")
    on_hub = config.dataset != DEMO and is_hub_dataset(config.dataset)
    tokenizer = base.tokenizer()
    try:
        with from_cache_only() if on_hub else nullcontext():
            data = load_training_set(config, tokenizer, keep=False)
            texts = sample_texts(config, data, tokenizer, keep=False) if vocabulary else []
    except EnvironmentFault as error:
        if error.key != "sources.not_fetched":
            raise
        return None, phrase("plan.hub_data", dataset=config.dataset)
    if vocabulary is not None:
        check_ids(base, vocabulary, our_ids(base, tokenizer, texts))
    return data.report, ""


def _needs(
    train: TrainConfig,
    merge: MergeConfig,
    export: ExportConfig,
    verify: VerifyConfig,
    run: Run,
    base: Base,
    estimator: MemoryEstimator,
    own: MemoryPlan,
) -> Sequence[Need]:
    from huggingface_hub import constants

    weights, shapes = estimator.parameters, merged_shapes(base)
    trained = 4 * sum(estimator.trained.values())
    in_run = checkpoints_bytes(trained, train.keep_checkpoints) + later_bytes(shapes, base.folder, merge, export)
    needs = [
        Need("disk_run", in_run, disk.free_bytes(run.root), str(run.root)),
        scratch_needed(
            verify,
            run.root,
            4 + len(export.quant),
            int(base.config.get("vocab_size", 0)),
            # export's own f16 file, which is counted above, stays for verify
            disk.gguf_bytes(shapes, vocabulary_bytes(base.folder), [F16]) if verify.paranoid else 0,
            keeps=train.keep_weight > 0,
        ),
        memory_needed(verify, weights),
    ]
    if train.keep_weight:
        size = states_bytes(train.keep_windows, train.max_length, estimator.text.hidden_size, estimator.dtype)
        needs.append(Need("ram_kept", own.processes * size, psutil.virtual_memory().available))
    if estimator.finish.blocks:
        cache = disk.cache_place()
        needs.append(Need("disk_blocks", estimator.finish.blocks, disk.free_bytes(cache), str(cache)))
    if own.host_bytes:
        host = own.processes * own.host_bytes
        needs.append(Need("ram_training", host, psutil.virtual_memory().available))
    if base.revision is not None and not any(base.folder.glob("*.safetensors")):
        hub = Path(constants.HF_HUB_CACHE)
        needs.append(Need("disk_download", 2 * weights, disk.free_bytes(hub), str(hub)))
    return needs
