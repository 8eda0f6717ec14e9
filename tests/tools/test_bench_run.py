"""Tests of the run's benchmark: tasks, the gaps between them, and stages, from the events as they arrive."""

from __future__ import annotations

from typing import Any

from bench_run import Row, Timeline, events


def begin(task: str) -> dict[str, Any]:
    return {"event": "begin", "task": task, "total": None, "unit": "B"}


def end(task: str) -> dict[str, Any]:
    return {"event": "end", "task": task}


def output(text: str) -> dict[str, Any]:
    return {"event": "message", "text": text}


def test_tasks_gaps_and_stages_add_up_to_the_run() -> None:
    """Tasks inside a task and beside it are rows of their own, but no gap; what is short is no row."""
    timeline = Timeline()
    arrived = [
        (output("train → run/adapter"), 10.0),
        (begin("reading"), 12.0),
        (begin("hashing"), 13.0),
        (end("reading"), 17.0),
        (end("hashing"), 18.0),
        (begin("short"), 18.2),
        (end("short"), 18.3),
        (output("merge → run/merged"), 20.0),
        (output("an arrow → in a text"), 21.0),
        (begin("merging"), 22.0),
        (end("merging"), 29.0),
    ]
    printed = [row for event, now in arrived for row in timeline.take(event, now)]
    printed += timeline.enter("", 30.0)
    assert printed == timeline.rows
    assert printed == [
        Row("start", "", 0.0, 10.0),
        Row("train", "", 10.0, 2.0),
        Row("train", "reading", 12.0, 5.0),
        Row("train", "hashing", 13.0, 5.0),
        Row("train", "", 18.3, 1.7),
        Row("merge", "", 20.0, 2.0),
        Row("merge", "merging", 22.0, 7.0),
        Row("merge", "", 29.0, 1.0),
    ]
    assert timeline.stages == {"start": 10.0, "train": 10.0, "merge": 10.0}
    assert timeline.silence == 10.0


def test_a_stage_may_end_inside_a_task() -> None:
    timeline = Timeline()
    for event, now in ((begin("all"), 1.0), (output("verify → x"), 5.0), (end("all"), 9.0)):
        list(timeline.take(event, now))
    list(timeline.enter("", 9.0))
    assert timeline.stages == {"start": 5.0, "verify": 4.0}


def test_lines_that_are_no_events_are_printed(capsys: Any) -> None:
    found = [event for event, _ in events(['{"event": "end", "task": "x"}\n', "a warning\n"], 0.0)]
    assert found == [end("x")]
    assert capsys.readouterr().out == "a warning\n"
