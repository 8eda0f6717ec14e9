"""Tests of batches of one shape: what is trained, where documents begin, and that padding has no effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.data.example import Example
from aegis.data.packing import IGNORED, Windows, pack
from aegis.errors import EnvironmentFault
from aegis.training.batch import BatchShape, MicroBatch
from aegis.training.objective import summed_loss
from aegis.training.step import Stepper
from tests.stored_pieces import stored
from tests.training.conftest import MakeState

CONFIG = TrainConfig(lora_r=2, learning_rate=1e-2, warmup_steps=0, annealing_steps=2, lora_dropout=0.0)


def windows(lengths: list[int], *, packing: bool = True, max_length: int = 16) -> Windows:
    rng = np.random.default_rng(0)
    pieces = []
    for length in lengths:
        trained = np.ones(length, dtype=bool)
        trained[: max(1, length // 3)] = False
        pieces.append(Example(rng.integers(1, 60, length).astype(np.int32), trained, False))
    return pack(stored(pieces), max_length=max_length, packing=packing, seed=0, pad_token_id=0)


def test_a_shape_serves_every_batch() -> None:
    """Rows, documents and the longest one are those of the worst batch, and no batch needs more."""
    data = windows([5, 9, 3, 16, 7, 4, 2, 12, 6])
    shape = BatchShape.of(data, 1)
    batches = [MicroBatch.make(data.batch([number])) for number in range(len(data))]
    assert shape.rows - 8 < max(batch.trained for batch in batches) <= shape.rows
    assert shape.rows % 8 == 0
    assert [batch.trained for batch in batches] == data.trained_per_window.tolist()
    for number in range(len(data)):
        fixed = MicroBatch.make(data.batch([number]), shape)
        assert fixed.rows.shape == fixed.targets.shape == (shape.rows,)
        assert fixed.edges is not None
        assert fixed.edges.dtype == torch.int32
        assert fixed.edges.tolist() == sorted(fixed.edges.tolist())
        assert (fixed.edges[0].item(), fixed.edges[-1].item()) == (0, 16)
        assert fixed.edges.diff().max().item() <= fixed.longest == shape.longest


def test_edges_are_where_positions_start_again() -> None:
    data = windows([5, 9, 3, 7, 4, 2])
    batch = data.batch([0, 1])
    made = MicroBatch.make(batch, BatchShape.of(data, 2))
    starts = np.flatnonzero(batch.position_ids.ravel() == 0).tolist()
    assert made.edges is not None
    assert made.edges.tolist()[: len(starts)] == starts
    assert set(made.edges.tolist()[len(starts) :]) == {32}


def test_single_documents_have_no_edges() -> None:
    """Padding behind a document is no second one: nothing looks forward."""
    data = windows([5, 9, 16], packing=False)
    shape = BatchShape.of(data, 1)
    assert shape.documents is None
    assert MicroBatch.make(data.batch([0]), shape).edges is None
    assert BatchShape.of(windows([5, 9]), 1).documents is not None


def test_windows_that_cannot_be_pinned_are_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    batch = windows([5, 9]).batch([0])
    assert MicroBatch.make(batch).trained > 0
    with pytest.raises(EnvironmentFault) as caught:
        MicroBatch.make(batch, pinned=True)
    assert "--max-length" in caught.value.fix


def test_rows_are_the_positions_before_trained_tokens() -> None:
    data = windows([5, 9, 3, 7])
    batch = data.batch([0])
    made = MicroBatch.make(batch, BatchShape(40, 4, 16))
    flat = batch.labels.ravel()
    for row, target in zip(made.rows[: made.trained].tolist(), made.targets[: made.trained].tolist(), strict=True):
        assert flat[row + 1] == target != IGNORED
    assert set(made.targets[made.trained :].tolist()) == {IGNORED}
    assert set(made.rows[made.trained :].tolist()) == {15}


@pytest.mark.parametrize("more", [0, 7])
def test_padding_does_not_change_a_step(make_state: MakeState, more: int) -> None:
    """Loss and update of a padded batch are those of the exact one, to rounding; other windows' are not."""
    data = windows([5, 9, 3, 7, 8, 4], max_length=12)
    shape = BatchShape.of(data, 1)
    padded = MicroBatch.make(data.batch([0]), BatchShape(shape.rows + more, shape.documents, shape.longest))
    exact = MicroBatch.make(data.batch([0]))
    one, two = make_state(CONFIG), make_state(CONFIG)
    first, second = Stepper(one, CONFIG).take(0, [padded]), Stepper(two, CONFIG).take(0, [exact])
    assert first.targets == second.targets
    assert first.task_loss == pytest.approx(second.task_loss, rel=1e-6)
    for name, parameter in one.parameters().items():
        assert torch.allclose(parameter, two.parameters()[name], atol=1e-6), name
    other = summed_loss(make_state(CONFIG), MicroBatch.make(data.batch([1]))).item()
    assert other / data.trained_per_window[1] != pytest.approx(first.task_loss, rel=1e-5)
