"""Tests in a small training that keep preserves the base's own text, and costs little of the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.data.kept import Kept
from aegis.data.training_set import load_training_set
from aegis.model.base import Base, load_tokenizer
from aegis.model.base_states import base_states
from aegis.training.batch import MicroBatch
from aegis.training.build_state import build_state
from aegis.training.keep.batches import KeptText
from aegis.training.keep.sources import load_kept
from aegis.training.loop import Loop
from aegis.training.objective import summed_divergence
from aegis.training.state import TrainState
from tests.trained import write_chats

CPU = torch.device("cpu")


def divergence(state: TrainState, kept: Kept, states: torch.Tensor) -> float:
    """Return KL(base ‖ trained) per token of the held-out windows."""
    made = MicroBatch.make(kept.heldout.batch(range(len(kept.heldout))), base_states=states)
    with torch.no_grad(), state.adapters.without_dropout():
        return summed_divergence(state, made).item() / made.trained


def test_keep_reduces_the_divergence_from_the_base(
    quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than a third of the divergence, on windows of the base's that neither training saw; off is the control."""
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    config = TrainConfig(
        base_model=str(quick_base),
        dataset=str(write_chats(tmp_path / "data.jsonl")),
        device="cpu",
        load_in="16bit",
        max_steps=30,
        warmup_steps=2,
        annealing_steps=20,
        batch_size=4,
        max_length=48,
        learning_rate=4e-3,
        logging_steps=10,
        heldout_rows=0,
        keep_every=1,
        keep_windows=48,
    )
    base, tokenizer = Base(str(quick_base), quick_base, None), load_tokenizer(quick_base)
    kept = load_kept(config, base, tokenizer, CPU)
    assert kept is not None
    states = base_states(base, kept.train, CPU, tmp_path)
    held = base_states(base, kept.heldout, CPU, tmp_path)
    data = load_training_set(config, tokenizer).train
    ends, losses = [], []
    for text in (KeptText(kept.train, states), None):
        with build_state(config, base, CPU, None) as state:
            if text is not None:
                assert divergence(state, kept, held) < 1e-5
            outcome = Loop(state, config, data, None, text).run(0, config.max_steps)
            ends.append(divergence(state, kept, held))
        losses.append(outcome.loss)
        assert (outcome.keep_kl is None) == (text is None)
    assert ends[0] < ends[1] / 3
    assert ends[1] > 0.1
    assert losses[0] < losses[1] + 0.5
    print(ends, losses)
