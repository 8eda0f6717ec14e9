"""train: trains an adapter and a soul on base and data, with checkpoints that a killed run resumes from.

Several processes may share one training (`training.distributed`): rank 0 locks the run, reads and hashes base and data
first, and broadcasts the step to resume from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.config.train_settings import OFF, TrainConfig
from aegis.data import kept
from aegis.errors import Interrupted, UsageError
from aegis.messages import bilingual, phrase
from aegis.model.base import TEMPLATE
from aegis.model.device import require_device
from aegis.model.load import compute_dtype
from aegis.report.plots.training import draw_all
from aegis.runs import disk
from aegis.runs.disk import checkpoints_bytes
from aegis.runs.foreign import refuse_foreign, refuse_foreign_rows
from aegis.runs.manifest import Manifest
from aegis.runs.metrics import read_metrics, truncate_metrics
from aegis.runs.overwriting import refuse_finished
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.soul.angles import rotation_angles
from aegis.training import checkpoint
from aegis.training.answers import AnswerLog
from aegis.training.best import best_step
from aegis.training.build_state import build_state
from aegis.training.distributed.group import ProcessGroup, process_group
from aegis.training.distributed.hand_over import handed_over
from aegis.training.distributed.launcher import refuse_unsupported_launch
from aegis.training.inputs import TrainingInputs
from aegis.training.keep.batches import KeptText
from aegis.training.loop import Loop
from aegis.training.outcome import LoopOutcome
from aegis.training.resume import FINISHED, first_step, refuse_no_checkpoint
from aegis.training.state import TrainState
from aegis.training.tracking import Report, check_tracker, tracked
from aegis.training.train_report import TrainReport
from aegis.verification.run_precheck import Later

DRY_RUN_STEPS = 10


def train(
    config: TrainConfig,
    run: Run,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: bool = False,
    later: Later | None = None,
) -> TrainReport:
    """Train, or resume an interrupted training with the same settings, data and base.

    Args:
        resume: refuse a fresh start: there must be a checkpoint to resume from.
        overwrite: delete what an earlier training left in the run, and start again.
        reuse: accept a finished adapter with the same settings, data and base.
        later: the settings of merge and export, if they are not the defaults; what they would refuse is refused now.

    Raises:
        UsageError: the run is finished, was started with other settings, data or base, or has files that AEGIS did
            not write; or `resume` and `overwrite` are both set.
        UnsupportedModelError: the base could not be converted later.
        EnvironmentFault, DataError, IntegrityError, DivergedError, Interrupted: see `aegis.errors`.
    """
    if resume and overwrite:
        raise UsageError("train.resume_and_overwrite")
    check_tracker(config.report_to)
    device = require_device(config.device)
    with (
        process_group(device) as group,
        _opened(run, group, resume=resume, replace=overwrite or reuse),
        ExitStack() as beside,
    ):
        refuse_unsupported_launch(group, compute_dtype(device))
        inputs = TrainingInputs.make(config, device, group, run, later, fresh=overwrite, beside=beside)
        config = inputs.config
        start = group.broadcast(lambda: first_step(inputs.manifest(), run, resume, overwrite, reuse))
        if start == FINISHED:
            return TrainReport.read(run.adapter, inputs)
        found = checkpoint.at(run.checkpoints, start) if start else None
        kept_text = inputs.kept_text() if start < config.max_steps else None
        with build_state(config, inputs.base, device, found, group, inputs.finish) as state:
            if start:
                progress.say(phrase("train.resuming", start=start))
            try:
                with _tracked(inputs, run, start) as report_row:
                    outcome = _loop(inputs, state, kept_text, run, start, report_row).run(start, config.max_steps)
            except Interrupted as error:
                raise error.with_fix(bilingual("train.go_on", run_root=run.root)) from None
            outcome = _best(inputs, state, run, outcome)
            rows = read_metrics(run.metrics)
            report = TrainReport.of(run.adapter, inputs, state, outcome, resumed_from=start, rows=rows)
            if group.is_main:
                _publish(inputs, state, run, report, overwrite=overwrite or reuse)
            return report


@contextmanager
def _opened(run: Run, group: ProcessGroup, *, resume: bool, replace: bool) -> Iterator[None]:
    """Lock the run in rank 0 while the block runs; refuse a finished adapter unless `replace` is set."""
    with ExitStack() as held:

        def open_run() -> None:
            held.enter_context(run.lock())
            refuse_finished(run, overwrite=replace)
            refuse_foreign(run.checkpoints, run.kept, run.pictures, run.adapter)
            refuse_foreign_rows(run.metrics, run.answers)
            if resume and not run.adapter.is_dir():
                refuse_no_checkpoint(run)

        group.broadcast(open_run)
        yield


def _publish(inputs: TrainingInputs, state: TrainState, run: Run, report: TrainReport, *, overwrite: bool) -> None:
    progress.say(phrase("train.finishing", adapter=run.adapter))
    # a run that was killed between saving and removing the oldest has one checkpoint too many
    checkpoint.prune(run.checkpoints, report.planned_steps, inputs.config.keep_checkpoints, spare=report.steps)
    # before the adapter, because an existing adapter means that the training is finished
    _draw(state, run, inputs.manifest())
    with publishing(run.adapter, inputs.manifest(report.result), overwrite=overwrite) as staging:
        weights = inputs.base.weights_hash
        checkpoint.write_trained(staging.path, state.model, state.soul, report.steps, weights)
        if inputs.base.chat_template is not None:
            (staging.path / TEMPLATE).write_text(inputs.base.chat_template, encoding="utf-8", newline="\n")


def _tracked(inputs: TrainingInputs, run: Run, start: int) -> AbstractContextManager[Report]:
    config = inputs.config
    kind = config.report_to if inputs.group.is_main and start < config.max_steps else "none"
    return tracked(kind, run.root, start, config.model_dump(mode="json"))


def _loop(
    inputs: TrainingInputs, state: TrainState, kept_text: KeptText | None, run: Run, start: int, report: Report
) -> Loop:
    if not inputs.group.is_main:
        return inputs.loop(state, kept_text)
    config, manifest = inputs.config, inputs.manifest()
    disk.require_space(run.root, _disk_needed(state, config), phrase("disk.checkpoints"))
    if inputs.kept is not None:
        # only now, so that a training which refuses its settings leaves nothing in the run
        kept.publish(run, inputs.kept, manifest)
    truncate_metrics(run.metrics, start)
    truncate_metrics(run.answers, start)

    def save(step: int) -> None:
        best = _best_step(run, inputs) if config.keep_best else None
        checkpoint.save(run.checkpoints, state, step, manifest, keep=config.keep_checkpoints, spare=best)

    return inputs.loop(
        state,
        kept_text,
        save=save,
        metrics=run.metrics,
        report=report,
        answers=_answers(inputs, state, run, start),
    )


def _answers(inputs: TrainingInputs, state: TrainState, run: Run, start: int) -> AnswerLog | None:
    config, heldout = inputs.config, inputs.data.heldout
    if config.sample_steps == OFF or heldout is None:
        return None
    if config.shard_base:  # each process has a part of every layer, and all must take part in every pass
        progress.say(phrase("answers.sharded"))
        return None
    return AnswerLog(config, state, inputs.base.tokenizer, heldout, run.answers, start, config.max_steps)


def _best_step(run: Run, inputs: TrainingInputs) -> int | None:
    config, first = inputs.config, 0 if inputs.finish is None else inputs.finish.start
    return best_step(read_metrics(run.metrics), config.save_steps, config.max_steps, first)


def _best_row(run: Run, inputs: TrainingInputs) -> dict[str, Any] | None:
    best = _best_step(run, inputs)
    return next((row for row in read_metrics(run.metrics) if row["step"] == best), None)


def _best(inputs: TrainingInputs, state: TrainState, run: Run, outcome: LoopOutcome) -> LoopOutcome:
    """With keep_best, load the checkpoint with the lowest held-out loss; return its outcome."""
    if not inputs.config.keep_best:
        return outcome
    row = inputs.group.broadcast(lambda: _best_row(run, inputs))
    if row is None or row["step"] == outcome.step:
        return outcome
    best: int = row["step"]
    with handed_over(inputs.group, checkpoint.at(run.checkpoints, best)) as found:
        checkpoint.load(found, state)
    progress.say(phrase("train.best", step=best, loss=row["heldout_loss"]))
    return replace(outcome, step=best, loss=row["task_loss"], heldout_loss=row["heldout_loss"], keep_kl=row["keep_kl"])


def dry_run(config: TrainConfig, later: Later | None = None) -> TrainReport:
    """Take ten real steps with the settings' own sizes, and report memory and speed; nothing is kept.

    The gate follows the schedule's first ten steps, as in the run itself; no checkpoint is written.
    """
    device = require_device(config.device)
    with process_group(device) as group:
        refuse_unsupported_launch(group, compute_dtype(device))
        inputs = TrainingInputs.make(config, device, group, later=later)
        config = inputs.config
        kept_text = inputs.kept_text()
        with build_state(config, inputs.base, device, None, group, inputs.finish) as state:
            steps = min(DRY_RUN_STEPS, config.max_steps)
            outcome = inputs.loop(state, kept_text).run(0, steps)
            return TrainReport.of(Path(), inputs, state, outcome)


def _draw(state: TrainState, run: Run, manifest: Manifest) -> None:
    soul = state.soul
    start, end = (rotation_angles(rotation).numpy() for rotation in (soul.initial, soul.rotation()))
    with publishing(run.pictures, manifest, overwrite=True) as staging:
        draw_all(read_metrics(run.metrics), start, end, torch.sigmoid(soul.alpha.detach()).item(), staging.path)


def _disk_needed(state: TrainState, config: TrainConfig) -> int:
    trained = sum(p.nbytes for p in state.parameters().values())
    return checkpoints_bytes(trained, config.keep_checkpoints)
