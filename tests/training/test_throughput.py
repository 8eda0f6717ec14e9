"""Tests of the counted speed of a training, with a clock that the test sets."""

from __future__ import annotations

import pytest

from aegis.training import throughput as module
from aegis.training.throughput import Throughput


def test_the_first_steps_count_separately_and_pauses_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    throughput = Throughput()
    now[0] += 20
    throughput.add_step(10)
    assert throughput.overall_rate() == 0.5
    throughput.end_warmup()
    assert throughput.start_seconds == 20
    assert throughput.rate() == 0.5
    now[0] += 2
    throughput.add_step(10)
    with throughput.paused():
        now[0] += 50
    assert throughput.overall_rate() == throughput.rate() == 5
    now[0] += 2
    throughput.add_step(30)
    assert throughput.rate() == 15
    assert throughput.overall_rate() == 10
