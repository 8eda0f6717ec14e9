"""Tests of train: every trained parameter changes, a resumed run is exact, and failed runs end cleanly."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aegis.config.train_settings import TrainConfig
from aegis.errors import (
    DataError,
    DivergedError,
    EnvironmentFault,
    IntegrityError,
    Interrupted,
    LockedError,
    UsageError,
)
from aegis.model import soul_hook
from aegis.report.plots.training import PICTURES
from aegis.runs.manifest import MANIFEST, read_manifest, verify_directory
from aegis.runs.run import Run
from aegis.soul.angles import quantiles_in_degrees, rotation_angles
from aegis.soul.file import load_soul
from aegis.soul.module import Soul
from aegis.soul.rotation import ORTHOGONALITY_BOUND, orthogonality_defect, random_rotation
from aegis.stages.train import dry_run, train
from aegis.training import loop
from aegis.training import step as step_module
from aegis.training.execution.options import ExecutionOptions
from aegis.training.resume import resume_config
from tests.conftest import Recorder
from tests.planted.finished import edit_json
from tests.trained import losses, small_training, train_until_killed, write_chats

pytestmark = pytest.mark.usefixtures("shared_cache", "unpainted")


@pytest.fixture(scope="module")
def config(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return small_training(quick_base, write_chats(tmp_path_factory.mktemp("data") / "data.jsonl"))


@pytest.fixture(scope="module")
def whole(config: TrainConfig, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the undisturbed training of `config`, which others are compared with."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    train(config, run)
    return run


@pytest.fixture(scope="module")
def other(config: TrainConfig, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the control: the same training with another seed."""
    run = Run(tmp_path_factory.mktemp("other") / "run")
    train(config.model_copy(update={"seed": 7}), run)
    return run


def trained_bytes(run: Run) -> dict[str, bytes]:
    return {
        name: (run.adapter / name).read_bytes()
        for name in ("adapter_model.safetensors", "soul.safetensors", "adapter_config.json", "manifest.json")
    }


@pytest.mark.parametrize("rotation", ["so8", "dense"])
def test_every_trained_parameter_has_changed(tmp_path: Path, config: TrainConfig, rotation: str) -> None:
    """R, every lora_A and every lora_B differ from the first checkpoint to the last; R is still a rotation."""
    run = Run(tmp_path / "run")
    report = train(config.model_copy(update={"rotation": rotation, "keep_checkpoints": 9}), run)
    first, last = run.checkpoints / "step_000002", run.adapter
    before, after = load_file(first / "adapter_model.safetensors"), load_file(last / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert len(before) == 4
    for name, tensor in before.items():
        assert not torch.equal(tensor, after[name]), name
    one, other = load_soul(first / "soul.safetensors"), load_soul(last / "soul.safetensors")
    assert (one.rotation - other.rotation).abs().max() > 1e-3
    assert orthogonality_defect(other.rotation).abs().max() < ORTHOGONALITY_BOUND
    assert other.alpha == pytest.approx(1.618)
    assert other.step == report.steps == 8
    assert other.base_hash == read_manifest(run.adapter).inputs["base"]


def test_metrics_follow_the_schedule(tmp_path: Path, config: TrainConfig) -> None:
    """α, g and phase are those of the design at every logged step; det is +1 and R orthogonal."""
    run = Run(tmp_path / "run")
    train(config, run)
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {row["planned_steps"] for row in rows} == {8}
    assert sorted(row["time"] for row in rows) == [row["time"] for row in rows]
    slope = (1.618 + 5) / 5
    assert [row["alpha"] for row in rows] == pytest.approx(
        [-5, -5, -5 + slope, -5 + 2 * slope, -5 + 3 * slope, -5 + 4 * slope, 1.618, 1.618], abs=1e-5
    )
    assert [row["phase"] for row in rows] == ["stable"] * 2 + ["transitioning"] * 4 + ["golden"] * 2
    assert rows[0]["gate"] == pytest.approx(0.0067, abs=1e-4)
    assert rows[-1]["gate"] == pytest.approx(0.8345, abs=1e-4)
    for row in rows:
        assert row["det"] == 1
        assert row["orthogonality_error"] < ORTHOGONALITY_BOUND
        assert row["grad_norm"] > 0
        assert row["loss"] >= row["task_loss"]
    assert rows[1]["heldout_loss"] is not None
    assert rows[2]["heldout_loss"] is None


@pytest.mark.parametrize("rotation", ["so8", "dense"])
def test_how_far_the_soul_has_turned_is_logged(tmp_path: Path, config: TrainConfig, rotation: str) -> None:
    """In the last row, the angles between R's start and its end; a dense R's only where a checkpoint is due."""
    run = Run(tmp_path / "run")
    random = {"rotation": rotation, "rotation_init": "random", "keep_checkpoints": 9}
    train(config.model_copy(update=random), run)
    rows = [json.loads(line)["turned_degrees"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [row is None for row in rows] == ([False] * 8 if rotation == "so8" else [True, False] * 3 + [True, False])
    soul = load_soul(run.adapter / "soul.safetensors")
    start, end = (
        Soul(soul.hidden_size, kind=soul.kind, init="random", seed=config.seed).initial,
        soul.rotation,
    )
    wanted = quantiles_in_degrees(rotation_angles(start.mT @ end))
    assert rows[-1] == pytest.approx(wanted, abs=0.1)
    assert rows[-1][-1] > 1
    assert rows[-1] != pytest.approx(quantiles_in_degrees(rotation_angles(end)), abs=1)  # the control
    assert {path.name for path in run.pictures.iterdir()} == {*PICTURES, "manifest.json"}


@pytest.mark.parametrize("rotation", ["so8", "dense"])
def test_a_reflection_is_refused_as_a_rotation(
    tmp_path: Path, config: TrainConfig, rotation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As orthogonal as a rotation: only its determinant tells. Nothing is saved of it."""

    def reflected(*arguments: Any) -> torch.Tensor:
        drawn = random_rotation(*arguments)
        drawn[-1, :, 0] *= -1
        return drawn

    monkeypatch.setattr("aegis.soul.rotation.random_rotation", reflected)
    run = Run(tmp_path / "run")
    with pytest.raises(IntegrityError, match="reflection at step"):
        train(config.model_copy(update={"rotation": rotation, "rotation_init": "random"}), run)
    assert not list(run.checkpoints.glob("step_*"))


def test_evaluating_the_heldout_loss_does_not_change_the_training(
    tmp_path: Path, config: TrainConfig, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training that evaluates and training that does not end in the same bytes."""
    blind = Run(tmp_path / "blind")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "evaluate", lambda *_: 0.0)
        train(config, blind)
    for name in ("adapter_model.safetensors", "soul.safetensors"):
        assert (whole.adapter / name).read_bytes() == (blind.adapter / name).read_bytes()


@pytest.mark.paints
@pytest.mark.parametrize("killed_at", [3, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, config: TrainConfig, whole: Run, other: Run, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """A run killed between checkpoints and started again ends in the same bytes and the same loss curve."""
    broken = Run(tmp_path / "broken")
    train_until_killed(monkeypatch, killed_at, config, broken)
    assert not broken.adapter.exists()
    report = train(config, broken, resume=True)
    assert report.resumed_from == killed_at // 2 * 2
    assert trained_bytes(broken) == trained_bytes(whole)
    assert losses(broken) == losses(whole)
    assert all((broken.pictures / name).read_bytes() == (whole.pictures / name).read_bytes() for name in PICTURES)
    assert trained_bytes(other) != trained_bytes(whole)
    assert (other.pictures / "training.png").read_bytes() != (whole.pictures / "training.png").read_bytes()


def test_a_damaged_checkpoint_is_skipped(
    tmp_path: Path, config: TrainConfig, whole: Run, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    """A flipped bit in the newest: the one before it is used; in all of them: exit 5, never a fresh start."""
    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 5, config, run)
    flip(run.checkpoints / "step_000004" / "resume.safetensors")
    report = train(config, run)
    assert report.resumed_from == 2
    assert any("skipping a damaged checkpoint" in text for text in reporter.warned)
    assert trained_bytes(run) == trained_bytes(whole)


def test_only_damaged_checkpoints_are_an_error(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 3, config, run)
    flip(run.checkpoints / "step_000002" / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match="every checkpoint"):
        train(config, run)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_other_settings_are_refused_with_the_difference(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = Run(tmp_path / "run"), write_chats(tmp_path / "data.jsonl")
    config = config.model_copy(update={"dataset": str(rows)})
    train_until_killed(monkeypatch, 3, config, run)
    with pytest.raises(UsageError, match=r"learning_rate: 0\.003 → 0\.1"):
        train(config.model_copy(update={"learning_rate": 0.1}), run)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    with pytest.raises(UsageError, match="hash of the data"):
        train(config, run)


def test_a_finished_run_is_kept(tmp_path: Path, config: TrainConfig) -> None:
    """Again is an error, with --overwrite a fresh start, with reuse the same answer."""
    run = Run(tmp_path / "run")
    short = config.model_copy(update={"max_steps": 2})
    train(short, run)
    before = trained_bytes(run)
    with pytest.raises(UsageError, match="is finished"):
        train(short, run)
    assert train(short, run, reuse=True).steps == 2
    with pytest.raises(UsageError, match="max_steps: 2 → 8"):
        train(config, run, reuse=True)
    assert trained_bytes(run) == before
    train(short.model_copy(update={"seed": 3}), run, overwrite=True)
    assert trained_bytes(run) != before
    assert verify_directory(run.adapter).config["seed"] == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_ends_the_run(
    tmp_path: Path, config: TrainConfig, whole: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """The step is finished and saved, and going on ends in the same bytes."""
    run = Run(tmp_path / "run")
    launch = step_module.Stepper.launch

    def signalled(self, step, *arguments):  # type: ignore[no-untyped-def]
        launched = launch(self, step, *arguments)
        if step == 2:
            os.kill(os.getpid(), number)
        return launched

    with monkeypatch.context() as patch:
        patch.setattr(step_module.Stepper, "launch", signalled)
        with pytest.raises(Interrupted, match="stopped after step 3") as caught:
            train(config, run)
    assert caught.value.exit_code == code
    assert caught.value.fix == f"continue with: aegis train --resume --run {run.root}"
    assert resume_config(run).model_dump(exclude={"device", "save_steps", "logging_steps"}) == config.model_dump(
        exclude={"device", "save_steps", "logging_steps"}
    )
    assert train(config, run, resume=True).resumed_from == 3
    assert trained_bytes(run) == trained_bytes(whole)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_loss_stops_the_run_before_the_update(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Exit 6 with the windows named; parameters are those of the step before, the checkpoint is whole."""
    run = Run(tmp_path / "run")
    summed = step_module.summed_loss
    calls = []

    def poisoned(trainee, batch):  # type: ignore[no-untyped-def]
        loss = summed(trainee, batch)
        calls.append(1)
        if len(calls) == 2 * 3 + 1:  # the first micro-batch of the fourth step
            before.update({n: p.detach().clone() for n, p in trainee.parameters().items()})
            trainees.append(trainee)
            if where == "loss":
                return loss * torch.nan
            loss.register_hook(lambda grad: grad * torch.inf)
        return loss

    before: dict[str, torch.Tensor] = {}
    trainees: list = []
    monkeypatch.setattr(step_module, "summed_loss", poisoned)
    with pytest.raises(DivergedError, match="diverged at step 4") as caught:
        train(config.model_copy(update={"heldout_rows": 0}), run)
    assert "windows of this step" in caught.value.why
    after = trainees[0].parameters()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert verify_directory(run.checkpoints / "step_000002").stage == "train"
    assert not run.adapter.exists()


def test_a_soul_out_of_the_graph_is_refused(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the forward pass walks past the soul, the run aborts instead of saving a soul that never moved."""
    monkeypatch.setattr(soul_hook.nn.Module, "register_forward_hook", lambda *_: soul_hook.nn.Identity(), raising=True)
    monkeypatch.setattr(soul_hook.nn.Identity, "remove", lambda _: None, raising=False)
    run = Run(tmp_path / "run")
    with pytest.raises(IntegrityError, match="the soul got no gradient"):
        train(config, run)
    assert not run.adapter.exists()


def test_two_runs_cannot_use_one_directory(tmp_path: Path, config: TrainConfig) -> None:
    """The second says whose it is, with exit 8."""
    run = Run(tmp_path / "run")
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with run.lock():
            entered.set()
            leave.wait(600)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert entered.wait(60)
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):
            train(config, run)
    finally:
        leave.set()
        thread.join()


def test_bad_data_leaves_no_run(tmp_path: Path, config: TrainConfig) -> None:
    path = write_chats(tmp_path / "data.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, *lines, '{"messages": [']), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        train(config.model_copy(update={"dataset": str(path)}), Run(tmp_path / "run"))
    assert "41" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_keeps_no_file(tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps, memory by part, a speed; and no file."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    report = dry_run(config)
    assert report.steps == 8
    assert report.memory is not None
    assert report.memory.base > report.memory.adapter > report.memory.soul > 0
    assert report.memory.optimizer >= 2 * report.memory.adapter
    assert report.tokens_per_second > 0
    assert report.start_seconds > 0
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_measures_the_number_of_steps_that_the_epochs_give(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a run is decides what is compiled and which activations are offloaded."""
    chosen: list[int] = []
    choose = ExecutionOptions.choose

    def choosing(config: TrainConfig, *arguments: Any) -> ExecutionOptions:
        chosen.append(config.max_steps)
        return choose(config, *arguments)

    monkeypatch.setattr(ExecutionOptions, "choose", choosing)
    report = dry_run(config.model_copy(update={"epochs": 0.5, "keep_weight": 0}))
    assert chosen == [report.planned_steps]
    assert report.planned_steps < config.max_steps


def test_alpha_follows_its_mode(tmp_path: Path, config: TrainConfig) -> None:
    """then-learned follows the schedule to its end and moves after; learned moves from the first step."""
    alphas = {}
    for mode in ("scheduled", "then-learned", "learned"):
        run = Run(tmp_path / mode)
        train(config.model_copy(update={"alpha": mode, "soul_learning_rate": 0.05}), run)
        rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        alphas[mode] = [row["alpha"] for row in rows]
    assert alphas["then-learned"][:6] == alphas["scheduled"][:6]
    assert alphas["then-learned"][7] != pytest.approx(1.618, abs=1e-3)
    assert alphas["learned"][0] != -5.0
    assert abs(alphas["learned"][-1] + 5) < 1


def test_resuming_under_other_versions_is_reported(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 3, config, run)
    path = run.checkpoints / "step_000002" / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(document), encoding="utf-8")
    train(config, run)
    assert any("torch 1.0 → " in text and "last bits" in text for text in reporter.warned)
    assert read_manifest(run.adapter).versions["torch"] != "1.0"


def test_settings_outside_the_hash_are_kept_on_resumption(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume alone continues with the same logging and the same number of checkpoints to keep."""
    run = Run(tmp_path / "run")
    kept = config.model_copy(update={"keep_checkpoints": 7})
    train_until_killed(monkeypatch, 3, kept, run)
    assert resume_config(run) == kept


def test_the_cap_on_the_gpus_memory_may_change(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run can be resumed with a lower cap, and a finished run counts as the same."""
    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 3, config, run)
    lower = config.model_copy(update={"gpu_memory_gib": 3.0})
    assert train(lower, run, resume=True).resumed_from > 0
    assert train(config, run, reuse=True).steps == config.max_steps


@pytest.mark.parametrize(("step", "saved"), [(0, []), (3, ["step_000002"])])
def test_a_full_gpu_names_the_settings_to_lower(
    tmp_path: Path, config: TrainConfig, whole: Run, monkeypatch: pytest.MonkeyPatch, step: int, saved: list[str]
) -> None:
    """The allocator's error in a step: exit 3, three settings, no partial checkpoint, and with more memory it resumes.

    The first step is as large as any: every window is padded to one length, so no longer batch comes later.
    """
    run = Run(tmp_path / "run")
    launch = step_module.Stepper.launch

    def full(self, number, *arguments):  # type: ignore[no-untyped-def]
        if number >= step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return launch(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step_module.Stepper, "launch", full)
        with pytest.raises(EnvironmentFault, match="the GPU's memory is full") as caught:
            train(config, run)
    for setting in ("--max-length", "--batch-size", "--activation-checkpointing"):
        assert setting in caught.value.fix
    found = [path.name for path in run.checkpoints.iterdir()] if run.checkpoints.exists() else []
    assert found == saved
    if saved:
        train(config, run)
        assert trained_bytes(run) == trained_bytes(whole)


def test_a_step_that_does_not_divide_is_refused(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on in another number of processes: the settings are theirs, or it cannot be done exactly."""
    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 3, config, run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_config(run).gradient_accumulation_steps == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="cannot be shared by 3 processes"):
        resume_config(run)
    for checkpoint in run.checkpoints.iterdir():
        edit_json(checkpoint / MANIFEST, lambda document: document["config"].update(gradient_accumulation_steps="x"))
    with pytest.raises(IntegrityError, match=r"config\.gradient_accumulation_steps"):
        resume_config(run)


def test_epochs_are_recorded_as_steps(tmp_path: Path, config: TrainConfig, reporter: Recorder) -> None:
    """So the same command resumes, and other epochs are other settings."""
    run, config = Run(tmp_path / "run"), config.model_copy(update={"epochs": 1.5, "keep_weight": 0})
    report = train(config, run)
    windows = read_manifest(run.adapter).facts["data"]["windows"]
    steps = -(-3 * windows // 4)
    assert (report.steps, read_manifest(run.adapter).config["max_steps"]) == (steps, steps)
    assert report.passes == 2 * steps / windows
    assert any(f"{report.passes:.3g}×" in text for text in reporter.messages)
    assert reporter.rows[-1]["epoch"] == round(report.passes, 4)
    assert train(config, run, reuse=True).steps == steps
    with pytest.raises(UsageError) as caught:
        train(config.model_copy(update={"epochs": 2.0}), run, reuse=True)
    assert caught.value.key == "train.other_settings"


def test_the_best_checkpoint_is_the_result(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives newer ones, and is published to the byte; the control is the same training without keep_best.

    An interruption saves after step 3, where the loss is lowest: no such checkpoint is in an uninterrupted training.
    """
    by_step = {2: 3.0, 3: 0.1, 4: 1.0, 6: 2.0, 8: 2.5}
    monkeypatch.setattr(loop.HeldoutWatch, "add", lambda self, step, loss: None)
    monkeypatch.setattr(loop.Loop, "evaluate", lambda self, windows: by_step[self._done])
    settle = loop.Loop._settle

    def settling(self: Any, done: int, taken: Any) -> None:
        self._done = done
        settle(self, done, taken)

    monkeypatch.setattr(loop.Loop, "_settle", settling)
    config = config.model_copy(update={"keep_weight": 0, "keep_checkpoints": 1})
    last = train(config, Run(tmp_path / "last"))
    assert last.steps == 8
    run = Run(tmp_path / "best")
    best = train(config.model_copy(update={"keep_best": True}), run)
    assert (best.steps, best.heldout_loss, best.planned_steps) == (4, 1.0, 8)
    assert sorted(path.name for path in run.checkpoints.glob("step_*")) == ["step_000004", "step_000008"]
    for name in ("adapter_model.safetensors", "soul.safetensors"):
        found = (run.adapter / name).read_bytes()
        assert found == (run.checkpoints / "step_000004" / name).read_bytes()
        assert found != (tmp_path / "last" / "adapter" / name).read_bytes()
        assert (run.checkpoints / "step_000008" / name).read_bytes() == (
            tmp_path / "last" / "adapter" / name
        ).read_bytes()

    launch, interrupted = step_module.Stepper.launch, Run(tmp_path / "interrupted")

    def signalled(self: Any, step: int, *arguments: Any) -> Any:
        launched = launch(self, step, *arguments)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return launched

    with monkeypatch.context() as patch:
        patch.setattr(step_module.Stepper, "launch", signalled)
        with pytest.raises(Interrupted, match="stopped after step 3"):
            train(config.model_copy(update={"keep_best": True}), interrupted)
    train(config.model_copy(update={"keep_best": True}), interrupted, resume=True)
    assert trained_bytes(interrupted) == trained_bytes(run)


def test_the_best_checkpoint_needs_held_out_rows(tmp_path: Path, config: TrainConfig) -> None:
    with pytest.raises(UsageError) as caught:
        train(config.model_copy(update={"keep_best": True, "heldout_rows": 0}), Run(tmp_path / "run"))
    assert caught.value.key == "train.nothing_held_out"


def test_epochs_that_end_before_alpha_does_are_said(tmp_path: Path, config: TrainConfig, reporter: Recorder) -> None:
    """The control is an alpha that is there in time."""
    for name, annealing_steps, output in (("in time", 1, 0), ("late", 400, 1)):
        changed = {"epochs": 1.5, "annealing_steps": annealing_steps, "keep_weight": 0}
        train(config.model_copy(update=changed), Run(tmp_path / name))
        assert sum("alpha rises for 401 steps" in text for text in reporter.warned) == output
        assert sum("alpha rises" in text for text in reporter.warned) == output
