"""train: base and data in, an adapter and a soul out, with checkpoints a killed run goes on from.

Several processes may share one training (`training.together`): process 0 holds the run, reads and hashes base and data
first, and tells the others what to go on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.config.advice import harmful_settings
from aegis.config.settings import TrainConfig
from aegis.data import kept
from aegis.data.dataset import Prepared
from aegis.data.kept import Kept
from aegis.data.training_set import load_training_set
from aegis.errors import EnvironmentFault, Interrupted, UsageError
from aegis.messages import bilingual, phrase
from aegis.model.base import Base, find_base, load_tokenizer
from aegis.model.base_states import base_states
from aegis.model.load import compute_dtype, dtype_name, require_device
from aegis.report.plots.training import draw_all
from aegis.runs import disk
from aegis.runs.disk import checkpoints_bytes
from aegis.runs.facts import AdapterFacts, DataFacts, KeptFacts, TrainFacts, TrainResult
from aegis.runs.manifest import Manifest, finished, read_manifest, versions
from aegis.runs.metrics import read_metrics, truncate_metrics
from aegis.runs.publish import discard, discard_leftovers, publishing, refuse_existing, sweep
from aegis.runs.run import Run
from aegis.soul.angles import rotation_angles
from aegis.training import checkpoint, memory
from aegis.training.distributed.group import ProcessGroup, process_group, world_size
from aegis.training.distributed.launcher import refuse_unsupported_launch
from aegis.training.execution import allocator
from aegis.training.keep.batches import KeptText
from aegis.training.keep.text import load_kept
from aegis.training.loop import Loop, LoopOutcome
from aegis.training.memory import MemoryParts
from aegis.training.setup import build_state
from aegis.training.state import TrainState
from aegis.training.tracking import Report, check_tracker, tracked
from aegis.verification.tokenizer_precheck import check_vocabulary

DRY_RUN_STEPS = 10
_DONE = -1

# settings that may differ between a run and its resumption without changing a weight. The GPU's free memory and the cap
# on it decide how many layers are offloaded or checkpointed, which changes rounding at most
_HOUSEKEEPING = {"device", "gpu_memory_gib", "logging_steps", "save_steps", "keep_checkpoints", "report_to"}

# counted over all processes in a manifest, so that the same training may go on in another number of them
_SHARED = "gradient_accumulation_steps"


@dataclass(frozen=True)
class TrainReport:
    """What training came to; its speed without the first steps, which took `start_seconds`."""

    adapter: Path
    steps: int
    resumed_from: int
    loss: float | None
    heldout_loss: float | None
    keep_kl: float | None
    alpha: float
    gate: float
    trainable_parameters: int
    processes: int
    tokens_per_second: float | None
    start_seconds: float
    memory: MemoryParts | None

    @property
    def result(self) -> TrainResult:
        """What is the same whenever and however often the run was interrupted."""
        return TrainResult(**{name: getattr(self, name) for name in TrainResult.model_fields})


def train(
    config: TrainConfig,
    run: Run,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: bool = False,
    llama_cpp_dir: Path | None = None,
) -> TrainReport:
    """Train, or go on where an interrupted training of the same settings, data and base stopped.

    Args:
        resume: refuse to start afresh: there must be a checkpoint to go on from.
        overwrite: throw away what the run already holds of training, and start afresh.
        reuse: take a finished adapter of the same settings, data and base for an answer.
        llama_cpp_dir: the llama.cpp checkout that will convert the result, if it is not the usual one.

    Raises:
        UsageError: the run is finished already, or was started with other settings, data or base.
        UnsupportedModelError: the base could not be converted in the end.
        EnvironmentFault, DataError, IntegrityError, DivergedError, Interrupted: as their classes say.
    """
    check_tracker(config.report_to)
    device = require_device(config.device)
    with process_group(device) as group, ExitStack() as held:
        refuse_unsupported_launch(group, compute_dtype(device))

        def open_run() -> None:
            held.enter_context(run.lock())
            refuse_existing(run.adapter, overwrite=overwrite or reuse)

        group.broadcast(open_run)
        prepared = _Prepared.make(config, device, group, run, llama_cpp_dir)
        start = group.broadcast(lambda: _start(prepared.manifest(), run, resume, overwrite, reuse))
        if start == _DONE:
            return _report_of(run.adapter, group)
        found = checkpoint.at(run.checkpoints, start) if start else None
        kept_text = prepared.kept_text() if start < config.max_steps else None
        with build_state(config, prepared.base, prepared.device, found, group) as state:
            if start:
                progress.say(phrase("train.resuming", start=start))
            try:
                with _reporting(prepared, run, start) as tell:
                    outcome = _loop(prepared, state, kept_text, run, start, tell).run(start, config.max_steps)
            except Interrupted as error:
                raise error.with_fix(bilingual("train.go_on", run_root=run.root)) from None
            report = prepared.report(run.adapter, state, outcome, start, read_metrics(run.metrics))
            if group.is_main:
                _publish(prepared, state, run, report, overwrite=overwrite or reuse)
            return report


def _publish(prepared: _Prepared, state: TrainState, run: Run, report: TrainReport, *, overwrite: bool) -> None:
    # a run killed between its last save and the removal of the oldest has one too many
    checkpoint.prune(run.checkpoints, report.steps, prepared.config.keep_checkpoints)
    # before the adapter, which is what tells that there is nothing left to do
    _draw(state, run, prepared.manifest())
    with publishing(run.adapter, prepared.manifest(report.result), overwrite=overwrite) as staging:
        weights = prepared.base.weights_hash
        checkpoint.write_trained(staging.path, state.model, state.soul, report.steps, weights)


def _start(manifest: Manifest, run: Run, resume: bool, overwrite: bool, reuse: bool) -> int:
    """The step to go on from, 0 for a fresh start, or _DONE if the run's adapter is the answer already."""
    if overwrite:
        # only now, when base and data are known to be good
        discard(run.checkpoints)
        discard(run.kept)
        run.metrics.unlink(missing_ok=True)
    if reuse and run.adapter.is_dir():
        if finished(run.adapter, manifest) is not None:
            return _DONE
        _refuse_changed(read_manifest(run.adapter), manifest, run)
    discard_leftovers(run.checkpoints)
    sweep(run.checkpoints)
    found = checkpoint.newest_whole(run.checkpoints)
    if found is not None:
        _refuse_changed(found[1], manifest, run)
        _warn_of_other_versions(found[1], manifest)
        return checkpoint.step_of(found[0])
    if resume:
        raise UsageError("train.no_checkpoint", run_root=run.root)
    return 0


def _reporting(prepared: _Prepared, run: Run, start: int) -> AbstractContextManager[Report]:
    config = prepared.config
    kind = config.report_to if prepared.group.is_main and start < config.max_steps else "none"
    return tracked(kind, run.root, start, config.model_dump(mode="json"))


def _loop(
    prepared: _Prepared, state: TrainState, kept_text: KeptText | None, run: Run, start: int, report: Report
) -> Loop:
    if not prepared.group.is_main:
        return prepared.loop(state, kept_text)
    config, manifest = prepared.config, prepared.manifest()
    disk.require_space(run.root, _disk_needed(state, config), phrase("disk.checkpoints"))
    if prepared.kept is not None:
        # only now: a training that refuses its settings leaves nothing in the run
        kept.publish(run, prepared.kept, manifest)
    truncate_metrics(run.metrics, start)
    return prepared.loop(
        state,
        kept_text,
        save=lambda step: checkpoint.save(run.checkpoints, state, step, manifest, keep=config.keep_checkpoints),
        metrics=run.metrics,
        report=report,
    )


def resume_config(run: Run) -> TrainConfig:
    """The settings an interrupted training was started with, so that they need not be given again.

    Raises:
        UsageError: there is no checkpoint, or its steps cannot be shared by as many processes as there are.
    """
    found = checkpoint.newest_whole(run.checkpoints)
    if found is None:
        raise UsageError("train.no_checkpoint", run_root=run.root)
    manifest, processes = found[1], world_size()
    config = {**TrainFacts.of(manifest).housekeeping, **manifest.config}
    if config[_SHARED] % processes:
        raise UsageError(
            "train.not_divisible",
            run_root=run.root,
            world_size=processes,
            forward_passes=config[_SHARED],
            batch_size=config["batch_size"],
        )
    return TrainConfig.model_validate(config | {_SHARED: config[_SHARED] // processes})


def dry_run(config: TrainConfig) -> TrainReport:
    """Take ten real steps at the settings' own size and report memory and speed; nothing is kept.

    The soul's gate is held at the schedule's first ten steps, as in the run itself; the checkpoint is not written.
    """
    device = require_device(config.device)
    with process_group(device) as group:
        refuse_unsupported_launch(group, compute_dtype(device))
        prepared = _Prepared.make(config, device, group)
        kept_text = prepared.kept_text()
        with build_state(config, prepared.base, prepared.device, None, group) as state:
            steps = min(DRY_RUN_STEPS, config.max_steps)
            outcome = prepared.loop(state, kept_text).run(0, steps)
            return prepared.report(Path(), state, outcome, 0)


@dataclass(frozen=True)
class _Prepared:
    """Everything that is known before the base is loaded."""

    config: TrainConfig
    base: Base
    data: Prepared
    kept: Kept | None
    device: torch.device
    group: ProcessGroup

    @classmethod
    def make(
        cls,
        config: TrainConfig,
        device: torch.device,
        group: ProcessGroup,
        run: Run | None = None,
        llama_cpp_dir: Path | None = None,
    ) -> _Prepared:
        if config.shard_base and group.world_size == 1:
            raise UsageError("train.shard_alone")
        for advice in harmful_settings(config):
            progress.warn(advice)
        with group.main_process_first():
            # what process 0 fetches and prepares, the others find in the caches
            base = find_base(config.base_model, config.revision)
            check_vocabulary(base, llama_cpp_dir)
            tokenizer = load_tokenizer(base.folder)
            data = load_training_set(config, tokenizer)
            with allocator.capped(device, config.gpu_memory_gib):
                kept = load_kept(config, base, tokenizer, device, run)
        found = [base.revision, data.report.content_sha256, kept and kept.sha256]
        if group.broadcast(lambda: found) != found:
            raise EnvironmentFault("train.different_inputs")
        return cls(config, base, data, kept, device, group)

    def manifest(self, result: TrainResult | None = None) -> Manifest:
        config = self.config.model_dump(mode="json", exclude=_HOUSEKEEPING)
        kept = {} if self.kept is None else {"kept": self.kept.sha256}
        return Manifest(
            stage="train",
            config=config | {_SHARED: config[_SHARED] * self.group.world_size},
            inputs={"base": self.base.weights_hash, "data": self.data.report.content_sha256} | kept,
            facts=TrainFacts(
                base_model=self.base.name,
                revision=self.base.revision,
                device=self.device.type,
                compute_dtype=dtype_name(compute_dtype(self.device)),
                processes=self.group.world_size,
                data=DataFacts(**asdict(self.data.report)),
                kept=None if self.kept is None else KeptFacts(**asdict(self.kept.report)),
                housekeeping=self.config.model_dump(mode="json", include=_HOUSEKEEPING),
                result=result,
            ).recorded(),
        )

    def kept_text(self) -> KeptText | None:
        """The kept windows with the base's states, which are worked out here and now."""
        if self.kept is None:
            return None
        with allocator.capped(self.device, self.config.gpu_memory_gib):
            spill = disk.cache_directory() / "kept"
            return KeptText(self.kept.train, base_states(self.base, self.kept.train, self.device, spill))

    def loop(self, state: TrainState, kept_text: KeptText | None, **sinks: Any) -> Loop:
        return Loop(state, self.config, self.data.train, self.data.heldout, kept_text, group=self.group, **sinks)

    def report(
        self, adapter: Path, state: TrainState, outcome: LoopOutcome, start: int, rows: Sequence[Mapping[str, Any]] = ()
    ) -> TrainReport:
        alpha = state.soul.alpha.detach()
        return TrainReport(
            adapter=adapter,
            steps=outcome.step,
            resumed_from=start,
            loss=outcome.loss,
            heldout_loss=outcome.heldout_loss,
            # a run that was killed after its last step has it in its rows alone
            keep_kl=outcome.keep_kl if outcome.keep_kl is not None or not rows else rows[-1].get("keep_kl"),
            alpha=alpha.item(),
            gate=torch.sigmoid(alpha).item(),
            trainable_parameters=sum(p.numel() for p in state.parameters().values() if p.requires_grad),
            processes=self.group.world_size,
            tokens_per_second=outcome.tokens_per_second,
            start_seconds=outcome.start_seconds,
            memory=memory.by_part(state, self.device),
        )


def _draw(state: TrainState, run: Run, manifest: Manifest) -> None:
    soul = state.soul
    start, end = (rotation_angles(rotation).numpy() for rotation in (soul.origin, soul.rotation()))
    with publishing(run.pictures, manifest, overwrite=True) as staging:
        draw_all(read_metrics(run.metrics), start, end, torch.sigmoid(soul.alpha.detach()).item(), staging.path)


def _report_of(adapter: Path, group: ProcessGroup) -> TrainReport:
    result = AdapterFacts.read(adapter).result
    return TrainReport(
        adapter=adapter,
        resumed_from=result.steps,
        loss=None,
        processes=group.world_size,
        tokens_per_second=None,
        start_seconds=0.0,
        memory=None,
        **dict(result),
    )


def _refuse_changed(old: Manifest, new: Manifest, run: Run) -> None:
    before = {**old.config, **{phrase("train.hash_of", name=name): value[:12] for name, value in old.inputs.items()}}
    after = {**new.config, **{phrase("train.hash_of", name=name): value[:12] for name, value in new.inputs.items()}}
    changed = [
        f"{name}{phrase('train.of_all') if name == _SHARED else ''}: {before.get(name)!r} → {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise UsageError("train.other_settings", run_root=run.root, changed="\n".join(changed))


def _warn_of_other_versions(old: Manifest, new: Manifest) -> None:
    """Say it when a run goes on where it would not come to the same bytes. Both are in the manifests it leaves."""
    same = {"device", "compute_dtype"}
    before = {**old.versions, **TrainFacts.of(old).model_dump(include=same)}
    now = {**versions(), **TrainFacts.of(new).model_dump(include=same)}
    changed = [f"{name} {before[name]} → {now.get(name)}" for name in before if before[name] != now.get(name)]
    if changed:
        progress.warn(phrase("train.other_versions", changed=", ".join(changed)))


def _disk_needed(state: TrainState, config: TrainConfig) -> int:
    trained = sum(p.nbytes for p in state.parameters().values())
    return checkpoints_bytes(trained, config.keep_checkpoints)
