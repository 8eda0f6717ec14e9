"""Tests that a shipped file must be closer to the trained model than the base, where precision can show it."""

from __future__ import annotations

import pytest

from aegis.verification.verdict import Nearness


@pytest.mark.parametrize(
    ("shipped", "base", "widening", "rounding", "ok", "stage"),
    [
        pytest.param(0.02, 0.4, 0.014, 0.006, True, "merge", id="nearer than the base"),
        pytest.param(0.5, 0.4, 0.014, 0.006, False, "merge", id="further, and NF4 against 16 bit took it further away"),
        pytest.param(0.5, 0.4, 0.006, 0.014, False, "quantize", id="further, and quantization took it further away"),
        pytest.param(0.006, 0.004, 0.0045, 0.002, True, "merge", id="training changed less than NF4 does"),
        pytest.param(0.006, 0.004, 0.002, 0.0045, True, "quantize", id="training changed less than quantization does"),
        pytest.param(0.007, 0.005, 0.002, 0.002, True, "merge", id="training changed less than both together"),
        pytest.param(0.007, 0.0081, 0.002, 0.002, True, "merge", id="nearer, though both together reach further"),
        pytest.param(0.009, 0.0081, 0.002, 0.002, False, "merge", id="further than both together can explain"),
        pytest.param(0.009, 0.004, -1e-9, 0.001, False, "quantize", id="a KL of nothing, rounded below zero"),
    ],
)
def test_a_shipped_file_is_nearer_than_the_base_or_training_changed_less_than_precision(
    shipped: float, base: float, widening: float, rounding: float, ok: bool, stage: str
) -> None:
    near = Nearness("Q4_K_M", shipped, base, widening, rounding)
    assert (near.ok, near.stage) == (ok, stage)
