"""Adapters and souls with known, large effects, saved as training saves them, and a training that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.train_settings import TrainConfig
from aegis.model.base import hash_weights
from aegis.model.lora_targets import attach_lora, resolve_targets
from aegis.model.shards import ShardSet
from aegis.model.soul_hook import soul_hook
from aegis.runs.run import Run
from aegis.soul.file import SoulRecord, save_soul
from aegis.soul.module import Soul
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from aegis.training.step import Stepper

ALPHA = 1.618  # g = 0.83


@dataclass(frozen=True)
class Trained:
    """A live model in float32 with adapter and soul, and the folder they were saved to."""

    base: Path
    adapter: Path
    model: Any
    soul: Soul

    def logits(self, tokens: Tensor) -> Tensor:
        with torch.no_grad(), soul_hook(self.model, self.soul):
            return self.model(input_ids=tokens).logits


MakeTrained = Callable[..., Trained]


@pytest.fixture
def make_trained(tmp_path: Path) -> MakeTrained:
    from transformers import AutoModelForCausalLM

    def make(base: Path, *, kind: str = "so8", lora: dict[str, Any] | None = None, hashed: bool = True) -> Trained:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        settings = {"rank": 4, "alpha": 8, "dropout": 0.0} | (lora or {})
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            model = attach_lora(model, resolve_targets(model), base_name=str(base), revision=None, **settings)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data.normal_(0, 0.1)
        soul = Soul(model.config.hidden_size, kind=kind, init="random", seed=11, alpha=ALPHA).eval()
        folder = tmp_path / "adapter"
        model.save_pretrained(folder, save_embedding_layers=False)
        base_hash = hash_weights(ShardSet.open(base)) if hashed else ""
        with torch.no_grad():
            save_soul(
                folder / "soul.safetensors",
                SoulRecord(soul.rotation().clone(), soul.alpha.item(), 100, base_hash, soul.counter_scale),
            )
        return Trained(base, folder, model.eval(), soul)

    return make


def tokens_for(model: Any, count: int = 48) -> Tensor:
    return torch.randint(3, model.config.vocab_size - 64, (2, count), generator=torch.Generator().manual_seed(9))


QUESTIONS = ("春の花は何ですか。", "海には何がいますか。", "山で何をしますか。", "雨の日はどうですか。", "何色ですか。")


def write_chats(path: Path) -> Path:
    """Write twenty small chats: a few epochs in the steps of `small_training`."""
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"{n}番目の答えでござる。"}]}
        for n, q in enumerate(QUESTIONS * 4)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def small_training(base: Path, dataset: Path) -> TrainConfig:
    """Return settings with all that resumption must restore: NF4, dropout, accumulation, packing, kept text."""
    return TrainConfig(
        base_model=str(base),
        dataset=str(dataset),
        device="cpu",
        max_steps=8,
        warmup_steps=1,
        annealing_steps=5,
        batch_size=1,
        gradient_accumulation_steps=2,
        max_length=64,
        learning_rate=3e-3,
        save_steps=2,
        logging_steps=1,
        heldout_rows=2,
        lora_dropout=0.1,
        keep_every=3,
        keep_windows=8,
    )


def finish_run(run: Run, base: Path) -> None:
    """Train hard for seconds, so that soul and adapter change the output, then merge and export; the f16 file stays."""
    config = TrainConfig(
        base_model=str(base),
        device="cpu",
        max_steps=24,
        keep_windows=8,
        warmup_steps=1,
        annealing_steps=10,
        batch_size=4,
        max_length=64,
        learning_rate=1e-2,
        save_steps=12,
    )
    train(config, run)
    merge(MergeInputs.from_run(run), run.merged, MergeConfig())
    export_gguf(run.merged, run.gguf, ExportConfig(keep_f16=True, name="tiny phi-3"))


class _Killed(BaseException):
    """Stands for a SIGKILL: nothing handles it."""


def train_until_killed(monkeypatch: pytest.MonkeyPatch, step: int, config: TrainConfig, run: Run) -> None:
    """Train, and end as if killed when step `step` begins."""
    launch = Stepper.launch

    def dying(self: Any, number: int, *arguments: Any) -> Any:
        if number >= step:
            raise _Killed
        return launch(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "launch", dying)
        with pytest.raises(_Killed):
            train(config, run)


def losses(run: Run) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["task_loss"]) for row in rows]
