"""Tests that pinning memory is tried with all pieces before training relies on it."""

from __future__ import annotations

import pytest
import torch

from aegis.training.execution.pinned_memory import can_pin


@pytest.mark.parametrize("error", ["CUDA error: out of memory", "CUDA error: an illegal memory access"])
def test_pinning_is_tried_with_all_pieces(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """With a stand-in for torch.empty instead of a GPU. An error of another kind is raised unchanged."""
    asked: list[int] = []
    fitting = 3

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool) -> None:
        assert (dtype, pin_memory) == (torch.uint8, True)
        asked.append(size)
        if len(asked) > fitting:
            raise RuntimeError(error)

    monkeypatch.setattr(torch, "empty", empty)
    assert can_pin([8, 16, 8])
    assert asked == [8, 16, 8]
    fitting = 4
    if "illegal" in error:
        with pytest.raises(RuntimeError, match="illegal"):
            can_pin([8, 16])
    else:
        assert not can_pin([8, 16])
