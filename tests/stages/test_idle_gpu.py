"""Tests that training and its plan refuse to fall back to the CPU beside a GPU that torch does not use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.doctor import gpu
from aegis.doctor.gpu import Card, Driver
from aegis.errors import EnvironmentFault
from aegis.stages.train import dry_run, train


@pytest.fixture(autouse=True)
def idle_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a driver that sees a GPU, and a torch built for the CPU."""
    card = Card("NVIDIA GeForce RTX 3060", (8, 6), 12 * 10**9, 11 * 10**9, ())
    monkeypatch.setattr(gpu, "seen_by_driver", lambda: Driver("580.65", (13, 0), (card,)))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "begin", [lambda out: train(TrainConfig(), out), lambda out: dry_run(TrainConfig())], ids=["train", "dry run"]
)
def test_an_idle_gpu_is_an_error_before_any_file_is_written(begin: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="does not use the GPU") as caught:
        begin(tmp_path / "adapter")
    assert caught.value.exit_code == 3
    assert "--device cpu" in caught.value.fix
    assert not list(tmp_path.iterdir())
