"""Tests of α over the steps, of g, and of the three phases."""

import itertools
import math

import pytest

from aegis.soul.gate import AlphaSchedule, Phase, gate, phase

ORIGINAL = AlphaSchedule(warmup_steps=50, annealing_steps=400)


@pytest.mark.parametrize(
    ("step", "alpha"),
    [(0, -5.0), (49, -5.0), (50, -5.0), (51, -5.0 + 6.618 / 400), (250, -5.0 + 6.618 / 2), (450, 1.618), (9999, 1.618)],
)
def test_alpha_is_constant_then_linear_then_constant(step: int, alpha: float) -> None:
    """Flat, a straight line, flat; the line begins at the end of the warm-up."""
    assert math.isclose(ORIGINAL(step), alpha)


def test_alpha_rises_without_a_jump() -> None:
    values = [ORIGINAL(step) for step in range(600)]
    rises = [b - a for a, b in itertools.pairwise(values)]
    assert min(rises) >= 0
    assert max(rises) < 6.618 / 400 + 1e-9


def test_the_gate_has_its_known_values_and_does_not_overflow() -> None:
    assert gate(-5.0) == pytest.approx(0.0067, abs=5e-5)
    assert gate(1.618) == pytest.approx(0.8345, abs=5e-5)
    assert gate(-800.0) == 0.0  # no overflow


def test_alpha_has_a_phase_at_every_value() -> None:
    assert [phase(a) for a in (-5.0, -4.5, -4.49, 0.0, 1.6165, 1.6175, 1.618)] == [
        Phase.STABLE,
        Phase.STABLE,
        Phase.TRANSITIONING,
        Phase.TRANSITIONING,
        Phase.TRANSITIONING,
        Phase.GOLDEN,
        Phase.GOLDEN,
    ]
