"""Tests of the free memory that a plan may use on a GPU."""

from __future__ import annotations

import pytest
import torch

from aegis.model.device import free_bytes
from aegis.training.execution.allocator import usable_bytes

CUDA = torch.device("cuda")
GIB = 2**30


def test_free_memory_ends_at_the_cap_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 * GIB, 120 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GIB)
    for fraction, free in ((1.0, 100), (0.1, 10)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _, f=fraction: f)
        assert free_bytes(CUDA) == pytest.approx(free * GIB)


@pytest.mark.parametrize(("free_gib", "usable_gib"), [(100, 90), (5, 4.5), (3, 2.5), (1, 0.5)])
def test_a_plan_leaves_a_tenth_and_half_a_gib(free_gib: float, usable_gib: float) -> None:
    assert usable_bytes(int(free_gib * GIB)) == pytest.approx(usable_gib * GIB)
