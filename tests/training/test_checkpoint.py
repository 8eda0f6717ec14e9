"""Tests of checkpoints: they are restored bit for bit, and a wrong one is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError
from aegis.runs.manifest import Manifest
from aegis.runs.metrics import truncate_metrics
from aegis.soul.file import load_soul
from aegis.training import checkpoint
from aegis.training.state import TrainState
from aegis.training.step import Stepper
from tests.conftest import Recorder
from tests.training.conftest import MakeState, noise

MANIFEST = Manifest("train", {"seed": 1}, {"base": "b" * 64, "data": "d"}, {})
CONFIG = TrainConfig(lora_r=2, learning_rate=1e-2, warmup_steps=1, annealing_steps=3, lora_dropout=0.1)


def steps(state: TrainState, config: TrainConfig, first: int, last: int) -> list[float]:
    stepper = Stepper(state, config)
    return [stepper.take(step, [noise(step)]).task_loss for step in range(first, last)]


def everything(state: TrainState) -> dict[str, Tensor]:
    everything = {name: parameter.detach().clone() for name, parameter in state.parameters().items()}
    for name, parameter in state.parameters().items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            everything[f"{key}.{name}"] = value.clone()
    return everything


def scaler(scale: float = 1024.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


@pytest.mark.parametrize("alpha", ["scheduled", "then-learned", "learned"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rotation", ["so8", "dense"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, make_state: MakeState, alpha: str, scaled: bool, rotation: str
) -> None:
    """Parameters, moments, scale and losses after a load equal those of a run without one; another seed's do not."""
    config = CONFIG.model_copy(update={"alpha": alpha, "soul_learning_rate": 0.05, "rotation": rotation})

    def new(seed: int = 0) -> TrainState:
        return make_state(config, scaler=scaler() if scaled else None, seed=seed)

    whole = new()
    steps(whole, config, 0, 3)
    folder = checkpoint.save(tmp_path, whole, 3, MANIFEST, keep=3)
    before, start = everything(whole), whole.soul.start.clone()
    scaled_by = whole.scaler.state_dict()
    wanted = steps(whole, config, 3, 8)

    resumed = new(seed=5)
    # the random base is not in a checkpoint: it is the same because it was loaded from the same files
    resumed.model.load_state_dict({k: v for k, v in new().model.state_dict().items() if "lora_" not in k}, strict=False)
    checkpoint.load(folder, resumed)
    found = everything(resumed)
    assert found.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in found.items())
    assert torch.equal(resumed.soul.start, start)
    assert resumed.scaler.state_dict() == scaled_by
    assert steps(resumed, config, 3, 8) == wanted
    assert all(torch.equal(value, everything(whole)[name]) for name, value in everything(resumed).items())
    assert torch.equal(resumed.soul.start, whole.soul.start)
    assert steps(new(seed=5), config, 3, 8) != wanted


def test_alpha_has_no_moments_before_it_is_learned(tmp_path: Path, make_state: MakeState) -> None:
    """then-learned, saved while the schedule still moves alpha: it resumes, and alpha gets its moments later."""
    config = CONFIG.model_copy(update={"alpha": "then-learned"})
    state = make_state(config)
    steps(state, config, 0, 2)
    folder = checkpoint.save(tmp_path, state, 2, MANIFEST, keep=1)
    assert "steps.soul.alpha" not in load_file(folder / "resume.safetensors")
    resumed = make_state(config)
    checkpoint.load(folder, resumed)
    assert resumed.soul.alpha not in resumed.optimizer.state
    steps(resumed, config, 2, 6)
    assert resumed.soul.alpha in resumed.optimizer.state


def test_later_stages_can_read_a_checkpoint(tmp_path: Path, make_state: MakeState) -> None:
    state = make_state(CONFIG)
    steps(state, CONFIG, 0, 5)
    folder = checkpoint.save(tmp_path, state, 5, MANIFEST, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "resume.safetensors",
        "soul.safetensors",
    ]
    soul = load_soul(folder / "soul.safetensors")
    with torch.no_grad():
        assert torch.equal(soul.rotation, state.soul.rotation())
    assert (soul.step, soul.base_hash) == (5, "b" * 64)
    assert soul.alpha == pytest.approx(1.618)


@pytest.fixture
def saved(tmp_path: Path, make_state: MakeState) -> Path:
    state = make_state(CONFIG)
    steps(state, CONFIG, 0, 2)
    return checkpoint.save(tmp_path, state, 2, MANIFEST, keep=1)


@pytest.mark.parametrize("name", ["resume.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "empty", "torn"])
def test_incomplete_files_are_refused(saved: Path, make_state: MakeState, name: str, damage: str) -> None:
    path = saved / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2 if damage == "torn" else 0])
    with pytest.raises(IntegrityError, match="cannot be read"):
        checkpoint.load(saved, make_state(CONFIG))


@pytest.mark.parametrize("file", ["resume.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("change", ["lost", "added", "reshaped"])
def test_other_tensors_are_refused_and_nothing_is_touched(
    saved: Path, make_state: MakeState, file: str, change: str
) -> None:
    """One tensor too few, too many, or of another shape, in either file, is named before any is loaded."""
    tensors = load_file(saved / file)
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    if change == "lost":
        del tensors[name]
    elif change == "added":
        tensors["stranger"] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(5, 7)
    save_file(tensors, saved / file)
    state = make_state(CONFIG, seed=3)
    before = everything(state)
    with pytest.raises(IntegrityError, match="another training set-up") as caught:
        checkpoint.load(saved, state)
    assert ("stranger" if change == "added" else name) in caught.value.why
    assert all(torch.equal(value, before[name]) for name, value in everything(state).items())


def test_another_set_up_is_refused(saved: Path, make_state: MakeState) -> None:
    """Another rank, or a scaler where there was none."""
    with pytest.raises(IntegrityError, match="another training set-up"):
        checkpoint.load(saved, make_state(CONFIG.model_copy(update={"lora_r": 3})))
    with pytest.raises(IntegrityError, match="scaler"):
        checkpoint.load(saved, make_state(CONFIG, scaler=scaler()))


def test_the_checkpoints_with_the_highest_steps_stay(tmp_path: Path, make_state: MakeState) -> None:
    """The clock does not matter, nor a step beyond six digits; another folder is left alone."""
    state = make_state(CONFIG)
    for name in ("step_notes", "step_12", "other"):
        (tmp_path / name).mkdir()
    for step in (999_999, 2, 1_000_000, 7):
        checkpoint.save(tmp_path, state, step, MANIFEST, keep=9)
    for age, step in enumerate((1_000_000, 999_999, 7, 2)):
        os.utime(tmp_path / f"step_{step:06d}", (1000 + age, 1000 + age))
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(tmp_path)] == [1_000_000, 999_999, 7, 2]
    checkpoint.save(tmp_path, state, 1_000_001, MANIFEST, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(tmp_path)] == [1_000_001, 1_000_000]
    assert {"step_notes", "step_12", "other"} <= {path.name for path in tmp_path.iterdir()}


def test_the_newest_undamaged_checkpoint_is_found(tmp_path: Path, make_state: MakeState, reporter: Recorder) -> None:
    """None before the first; damaged ones are passed over with their reason; all damaged is exit 5."""
    assert checkpoint.newest_whole(tmp_path / "nowhere") is None
    state = make_state(CONFIG)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state, step, MANIFEST, keep=9)
    (tmp_path / "step_000003" / "manifest.json").unlink()
    (tmp_path / "step_000002" / "soul.safetensors").write_bytes(b"")
    found = checkpoint.newest_whole(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found[0]) == 1
    assert found[1].config == MANIFEST.config
    assert len(reporter.warned) == 2
    assert "manifest.json" in reporter.warned[0]
    assert "soul.safetensors: 0 bytes" in reporter.warned[1]
    shutil.rmtree(tmp_path / "step_000001")
    with pytest.raises(IntegrityError, match="every checkpoint"):
        checkpoint.newest_whole(tmp_path)


def test_rows_of_metrics_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    """Later rows, a row cut by a crash and invalid rows are removed; the others are unchanged."""
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "loss": 3.5, "phase": "安定"}\n{"loss": 2, "step": 2}\n'
    path.write_text(kept + '{"step": 3}\n[]\n\n{"step": "x"}\n{"step": 2, "lo', encoding="utf-8")
    truncate_metrics(path, 2)
    assert path.read_text(encoding="utf-8") == kept
    truncate_metrics(path, 0)
    assert path.read_text(encoding="utf-8") == ""
    truncate_metrics(tmp_path / "absent", 2)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_later_checkpoint_does_not_displace_another(tmp_path: Path) -> None:
    """Passed over and not removed: with one to keep, the one just saved stays beside it."""
    for step in (1, 2, 9):
        (tmp_path / f"step_{step:06d}").mkdir()
    checkpoint.prune(tmp_path, 2, keep=1)
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(tmp_path)] == [9, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000009"]
