"""Finds and reads base, data and kept text before any weight is loaded."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch

from aegis import progress
from aegis.background import Background
from aegis.config.advice import warn_of_harm
from aegis.config.train_settings import TrainConfig
from aegis.data.dataset import Prepared
from aegis.data.epochs import passes, with_steps
from aegis.data.kept import Kept
from aegis.data.training_set import load_training_set
from aegis.errors import EnvironmentFault, UsageError
from aegis.merging.shipped_weights import load_kernels
from aegis.messages import phrase
from aegis.model.base import Base, find_base
from aegis.model.base_states import base_states
from aegis.model.load import compute_dtype, dtype_name
from aegis.model.trained_base import TEMPLATE_INPUT, with_template
from aegis.runs import disk
from aegis.runs.facts import DataFacts, KeptFacts, TrainFacts, TrainResult
from aegis.runs.manifest import Manifest
from aegis.runs.run import Run
from aegis.training.distributed.group import ProcessGroup
from aegis.training.execution import allocator
from aegis.training.finish import Finish, FinishStart
from aegis.training.finish_choice import FinishChoice
from aegis.training.keep.batches import KeptText
from aegis.training.keep.sources import load_kept
from aegis.training.loop import Loop
from aegis.training.resume import HOUSEKEEPING, SHARED, started
from aegis.training.state import TrainState
from aegis.verification.base_precheck import check_base
from aegis.verification.run_precheck import Later, check_later
from aegis.verification.tokenizer_precheck import check_ids, converting_vocabulary, our_ids, sample_texts


@dataclass(frozen=True)
class TrainingInputs:
    """What a training knows before the base is loaded."""

    config: TrainConfig
    base: Base
    data: Prepared
    kept: Kept | None
    finish: Finish | None
    quant: str
    device: torch.device
    group: ProcessGroup
    blocks: Background[None] | None = None

    @classmethod
    def make(
        cls,
        config: TrainConfig,
        device: torch.device,
        group: ProcessGroup,
        run: Run | None = None,
        later: Later | None = None,
        *,
        fresh: bool = False,
        beside: ExitStack | None = None,
    ) -> TrainingInputs:
        """Read and check everything that a training needs.

        Args:
            fresh: whether an earlier training in the run does not count.
            beside: while it is open, the blocks of a finish on a GPU are made in the background; None makes none here.
        """
        group.broadcast(lambda: _check_shards(config, group.world_size))
        later = later or Later()
        # where there are several machines, only that of process 0 has the run
        recorded = group.broadcast(lambda: _recorded(None if fresh else run))
        choice = FinishChoice.of(config, later, TrainFacts.model_validate(recorded) if recorded else None)
        warn_of_harm(config)
        with group.main_process_first():
            # process 0 downloads and prepares; the others find the results in the caches
            base = with_template(find_base(config.base_model, config.revision), config.chat_template)
            choice.bring_converter()
            hashing = Background(lambda: base.weights_hash)
            with converting_vocabulary(base, later.export.llama_cpp_dir) as converting:
                # before the converter loads it too: this refuses one that would fill the memory
                tokenizer = base.tokenizer()
                converting.begin()
                check_base(base, config.lora_targets, later.export.llama_cpp_dir)
                check_later(base, config, later, run)
                data = load_training_set(config, tokenizer)
                config = with_steps(config, len(data.train), group.world_size)
                ids = our_ids(base, tokenizer, sample_texts(config, data, tokenizer))
                import_module("peft")  # it takes seconds, and the converter still works
                vocabulary = converting.result()
                finish = choice.plan(config, base, vocabulary)
                if vocabulary is not None:
                    check_ids(base, vocabulary, ids)
            hashing.result()
            if config.keep_best and data.heldout is None:
                raise UsageError("train.nothing_held_out")
            blocks = _blocks(finish, config, device, beside)
            with allocator.capped(device, config.gpu_memory_gib):
                kept = load_kept(config, base, tokenizer, device, run)
        finish = choice.settled(finish, config, device, group)
        if blocks is not None and finish is None:
            blocks.end()
        _warn_of_unfinished_alpha(config)
        found = [base.revision, data.report.content_sha256, kept and kept.sha256]
        if group.broadcast(lambda: found) != found:
            raise EnvironmentFault("train.different_inputs")
        inputs = cls(config, base, data, kept, finish, choice.quant, device, group, blocks)
        progress.say(phrase("train.passes", windows=len(data.train), steps=config.max_steps, passes=inputs.passes))
        return inputs

    @property
    def passes(self) -> float:
        """How often the complete training sees the data."""
        return passes(self.config, len(self.data.train), self.group.world_size)

    def manifest(self, result: TrainResult | None = None) -> Manifest:
        # with keep_best, the steps at which the held-out loss is measured decide which checkpoint is the result
        fixed = {"save_steps"} if self.config.keep_best else set()
        config = self.config.model_dump(mode="json", exclude=HOUSEKEEPING - fixed)
        kept = {} if self.kept is None else {"kept": self.kept.sha256}
        finish = {} if self.finish is None else {"finish": self.finish.digest}
        text = self.base.chat_template
        template = {} if text is None else {TEMPLATE_INPUT: hashlib.sha256(text.encode()).hexdigest()}
        return Manifest(
            stage="train",
            config=config | {SHARED: config[SHARED] * self.group.world_size},
            inputs={"base": self.base.weights_hash, "data": self.data.report.content_sha256} | kept | finish | template,
            facts=TrainFacts(
                base_model=self.base.name,
                revision=self.base.revision,
                device=self.device.type,
                compute_dtype=dtype_name(compute_dtype(self.device)),
                processes=self.group.world_size,
                data=DataFacts(**asdict(self.data.report)),
                kept=None if self.kept is None else KeptFacts(**asdict(self.kept.report)),
                quant=self.quant,
                finish=None if self.finish is None else self.finish.facts,
                housekeeping=self.config.model_dump(mode="json", include=HOUSEKEEPING),
                result=result,
            ).recorded(),
        )

    def kept_text(self) -> KeptText | None:
        """Compute the base's states of the kept windows; None if nothing is kept."""
        if self.kept is None:
            return None
        with allocator.capped(self.device, self.config.gpu_memory_gib):
            spill = disk.cache_directory() / "kept"
            return KeptText(self.kept.train, base_states(self.base, self.kept.train, self.device, spill))

    def loop(self, state: TrainState, kept_text: KeptText | None, **sinks: Any) -> Loop:
        data, finish = self.data, FinishStart(self.finish, self.blocks)
        return Loop(state, self.config, data.train, data.heldout, kept_text, finish=finish, group=self.group, **sinks)


def _recorded(run: Run | None) -> dict[str, Any] | None:
    """Return the facts of the run's training, if it was started before, as JSON."""
    facts = None if run is None else started(run)
    return None if facts is None else facts.recorded()


def _blocks(
    finish: Finish | None, config: TrainConfig, device: torch.device, beside: ExitStack | None
) -> Background[None] | None:
    """Begin to make the blocks that a planned finish needs on a GPU, in the first process of a machine for all."""
    if finish is None or beside is None or device.type != "cuda" or device.index:
        return None
    # the processors have little to do while the GPU writes the kept text; what fails here will fail in the finish too
    Background(lambda: load_kernels(finish.recipe, device, compute_dtype(device)))
    return beside.enter_context(finish.make_blocks(config.lora_targets))


def _check_shards(config: TrainConfig, world_size: int) -> None:
    if config.shard_base and world_size == 1:
        raise UsageError("train.shard_alone")
    if world_size % (config.shard_processes or 1):
        raise UsageError("train.shards_left_over", world_size=world_size, together=config.shard_processes)


def _warn_of_unfinished_alpha(config: TrainConfig) -> None:
    rise = config.warmup_steps + config.annealing_steps
    if config.epochs is not None and config.alpha != "learned" and rise > config.max_steps:
        progress.warn(phrase("train.alpha_unfinished", rise=rise, steps=config.max_steps))
