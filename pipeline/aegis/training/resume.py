"""Decides where a training starts: at the newest checkpoint if settings, base and data are the same, else at step 0."""

from __future__ import annotations

from contextlib import suppress

from aegis import progress
from aegis.config.recorded import recorded_config
from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError, UsageError
from aegis.messages import phrase
from aegis.runs.facts import TrainFacts
from aegis.runs.manifest import MANIFEST, Manifest, finished, read_manifest, versions
from aegis.runs.publish import discard, discard_leftovers, sweep
from aegis.runs.run import Run
from aegis.training import checkpoint
from aegis.training.distributed.launcher import world_size

FINISHED = -1
"""What `first_step` returns if the run's adapter is the result already."""

HOUSEKEEPING = {
    "device", "gpu_memory_gib", "logging_steps", "save_steps", "keep_checkpoints", "report_to", "chat_template",
    "shard_processes", "shard_offload", "sample_steps",
}  # fmt: skip
"""Settings that may differ between a run and its resumption without changing a weight.

The GPU's free memory and the cap on it decide how many layers are offloaded or checkpointed; this changes only
rounding. A chat template is compared by its content, not by its path.
"""

SHARED = "gradient_accumulation_steps"
"""A manifest counts this setting over all processes, so that another number of processes can resume the training."""


def first_step(manifest: Manifest, run: Run, resume: bool, overwrite: bool, reuse: bool) -> int:
    """Return the step to resume from, 0 for a fresh start, or FINISHED if the run's adapter is the result already.

    Args:
        manifest: the manifest of the requested training.
        resume: refuse a fresh start.
        overwrite: delete what an earlier training left in the run.
        reuse: accept a finished adapter with the same manifest.

    Raises:
        UsageError: the run's checkpoint or adapter has other settings, data or base; or there is none to resume.
        IntegrityError: its manifest is damaged.
    """
    if overwrite:
        # only now: base and data are checked, so a wrong path cannot cost the old checkpoints
        discard(run.checkpoints)
        discard(run.kept)
        run.metrics.unlink(missing_ok=True)
        run.answers.unlink(missing_ok=True)
    if reuse and run.adapter.is_dir():
        if finished(run.adapter, manifest) is not None:
            return FINISHED
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


def started(run: Run) -> TrainFacts | None:
    """Return the facts of the run's training, finished or not; None if there is none that can be read.

    What was decided about its finish when it was started holds for later commands, which may ask for other files.
    """
    for folder in (run.adapter, *checkpoint.list_steps(run.checkpoints)):
        if (folder / MANIFEST).is_file():
            with suppress(IntegrityError):  # reported where the result is used
                return TrainFacts.of(read_manifest(folder))
    return None


def refuse_no_checkpoint(run: Run) -> None:
    """Refuse to resume a run without a checkpoint, before base and data are read and kept text is written.

    Raises:
        UsageError: there is none.
    """
    if not checkpoint.list_steps(run.checkpoints):
        raise UsageError("train.no_checkpoint", run_root=run.root)


def resume_config(run: Run) -> TrainConfig:
    """Read the settings of an interrupted training from its newest checkpoint.

    Raises:
        UsageError: there is no checkpoint, or the number of processes does not divide its micro-batches per step.
    """
    found = checkpoint.newest_whole(run.checkpoints)
    if found is None:
        raise UsageError("train.no_checkpoint", run_root=run.root)
    manifest, processes = found[1], world_size()
    config = recorded_config(manifest, TrainConfig, TrainFacts.of(manifest).housekeeping)
    passes = config.gradient_accumulation_steps
    if passes % processes:
        raise UsageError(
            "train.not_divisible",
            run_root=run.root,
            world_size=processes,
            forward_passes=passes,
            batch_size=config.batch_size,
        )
    return config.model_copy(update={SHARED: passes // processes})


def _refuse_changed(old: Manifest, new: Manifest, run: Run) -> None:
    before = {**old.config, **{phrase("train.hash_of", name=name): value[:12] for name, value in old.inputs.items()}}
    after = {**new.config, **{phrase("train.hash_of", name=name): value[:12] for name, value in new.inputs.items()}}
    changed = [
        f"{name}{phrase('train.of_all') if name == SHARED else ''}: {before.get(name)!r} → {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise UsageError("train.other_settings", run_root=run.root, changed="\n".join(changed))


def _warn_of_other_versions(old: Manifest, new: Manifest) -> None:
    """Warn if device, dtype or package versions differ, because the result then has other bytes."""
    same = {"device", "compute_dtype"}
    before = {**old.versions, **TrainFacts.of(old).model_dump(include=same)}
    now = {**versions(), **TrainFacts.of(new).model_dump(include=same)}
    changed = [f"{name} {before[name]} → {now.get(name)}" for name in before if before[name] != now.get(name)]
    if changed:
        progress.warn(phrase("train.other_versions", changed=", ".join(changed)))
