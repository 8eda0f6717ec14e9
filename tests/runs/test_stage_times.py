"""Tests of the stages' times: what one took, its share of the whole, and about how long the rest takes."""

from __future__ import annotations

import pytest

from aegis.runs import stage_times
from aegis.runs.stage_times import StageTimes, duration
from tests.conftest import Recorder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(stage_times.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stage_times, "_USUAL", {"merge": 10.0, "export": 30.0, "verify": 60.0})
    return now


def test_each_stage_tells_its_share_and_what_is_left(reporter: Recorder, clock: list[float]) -> None:
    """Twice as slow as usual in merge: so is the rest, until export was as fast as usual. Training tells nothing."""
    times = StageTimes()
    for name, seconds in (("train", 100), ("merge", 20), ("export", 30), ("verify", 50)):
        with times.stage(name):
            clock[0] += seconds
    assert reporter.messages == [
        "  took 1 min 40 s",
        "  took 20 s, 7% of the whole; about 3 min 0 s left",  # 20 of 300
        "  took 30 s, 13% of the whole; about 1 min 15 s left",  # 60 · 50/40, and 30 of 225
        "  took 50 s, 25% of the whole, 3 min 20 s",
    ]


def test_a_stage_that_was_kept_tells_nothing_of_the_rest(clock: list[float]) -> None:
    times = StageTimes()
    times.kept.add("merge")
    with times.stage("merge"):
        clock[0] += 0.1
    assert times.left_s() is None
    with times.stage("export"):
        clock[0] += 60
    assert times.left_s() == pytest.approx(120)


def test_a_failed_stage_has_no_time(reporter: Recorder) -> None:
    times = StageTimes()
    with pytest.raises(KeyError), times.stage("merge"):
        raise KeyError
    assert not times.taken
    assert not reporter.messages


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7300, "2 h 1 min")]
)
def test_a_duration_is_told_to_the_second(seconds: float, text: str) -> None:
    assert duration(seconds) == text
