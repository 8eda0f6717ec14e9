"""What counts as training's speed, by a clock that the test winds."""

from __future__ import annotations

import pytest

from aegis.training import throughput as module
from aegis.training.throughput import Pace


def test_the_start_counts_apart_and_what_is_no_training_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    pace = Pace()
    now[0] += 20
    pace.took(10)
    assert pace.whole() == 0.5
    pace.started()
    assert pace.start_seconds == 20
    assert pace.lap() == 0.5
    now[0] += 2
    pace.took(10)
    with pace.aside():
        now[0] += 50
    assert pace.whole() == pace.lap() == 5
    now[0] += 2
    pace.took(30)
    assert pace.lap() == 15
    assert pace.whole() == 10
