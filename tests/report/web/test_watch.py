"""Tests of a run's live page in a real browser: it follows metrics.jsonl as it grows, and shows the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis.messages import words
from aegis.runs.run import Run
from tests.browser import Browser, Tab
from tests.chat.serving.conftest import require_packages

ENGLISH = words("web_page", "en")
HOSTILE = '</script><img src="http://127.0.0.1:9/spy.png" onerror="document.title=1">'
STATE = "document.getElementById('state').textContent"
ANSWERS = "[...document.querySelectorAll('#asked dl')].map(e => [...e.querySelectorAll('dd')].map(d => d.innerText))"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
POINTS = "[...document.querySelectorAll('polyline')].map(line => line.getAttribute('points').split(' ').length)"


@pytest.fixture(scope="module", autouse=True)
def _has_its_packages() -> None:
    require_packages("starlette", "uvicorn")


@pytest.fixture
def serve() -> Callable[[Run], Any]:
    from aegis.report.web.watch import make_app
    from tests.report.web.served import served

    return lambda run: served(make_app(run))


def add_rows(run: Run, *steps: int, **changes: Any) -> None:
    run.root.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with run.metrics.open("a", encoding="utf-8") as file:
        for step in steps:
            row = {
                "step": step,
                "epoch": step / 40,
                "task_loss": 4 - step / 40,
                "heldout_loss": 3.5 if step % 20 == 0 else None,
                "keep_kl": 0.01 * step,
                "alpha": step / 50 - 1,
                "gate": 0.5,
                "phase": "transitioning",
                "tokens_per_second": 812.5,
                "peak_bytes": 3 << 30,
                "planned_steps": 100,
                "time": now + 2 * (step - steps[-1]),
            }
            file.write(json.dumps(row | changes) + "\n")


def add_answers(run: Run, step: int, *answers: str, **changes: Any) -> None:
    with run.answers.open("a", encoding="utf-8") as file:
        for number, answer in enumerate(answers):
            row = {"step": step, "question": f"question {number}?", "answer": answer, "cut": number == 1}
            file.write(json.dumps(row | {"reference": f"reference {number}"} | changes) + "\n")


def tiles(tab: Tab) -> dict[str, str]:
    pairs = tab.value("[...document.querySelectorAll('#tiles div')].map(e => [...e.children].map(c => c.innerText))")
    return dict(pairs)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_follows_a_training_from_its_first_row_to_its_report(
    browser: Browser, serve: Callable[[Run], Any], tmp_path: Path, width: int
) -> None:
    run = Run(tmp_path / "mine")
    with serve(run) as url, browser.tab(url, width) as tab:
        tab.wait(f"{STATE} === {json.dumps(ENGLISH['watch_waiting'])}")
        add_rows(run, 10, 20, 30, 40)
        tab.wait(f"{STATE} === {json.dumps(ENGLISH['watch_running'])}")
        shown = tiles(tab)
        assert shown[ENGLISH["watch_step"]] == "40 of 100"
        assert shown[ENGLISH["watch_left"]] == "2 min 0 s"
        assert shown[ENGLISH["watch_heldout"]] == "3.5"
        assert shown[ENGLISH["watch_memory"]] == "3.00 GiB"
        assert tab.value(POINTS) == [4, 4, 2, 4, 4, 4, 4], "a curve per number; the held-out loss is measured at times"
        add_rows(run, 50)
        tab.wait(f"{POINTS}[0] === 5")
        assert tiles(tab)[ENGLISH["watch_step"]] == "50 of 100"
        assert tab.value(OVERFLOW) <= 0
        add_rows(run, 100)
        run.adapter.mkdir()
        tab.wait(f"{STATE} === {json.dumps(ENGLISH['watch_ended'])}")
        assert tab.value("document.getElementById('report').hidden")
        run.report.mkdir()
        run.report_page.write_text(f"<p>the report</p>{HOSTILE}<script>parent.document.title = 1</script>", "utf-8")
        tab.wait(
            "!document.getElementById('report').hidden && document.getElementById('frame').src.includes('/report')"
        )
        assert tab.value(STATE) == ENGLISH["watch_reported"]
        time.sleep(0.5)  # for the script in it, which must not run
        assert tab.value("document.title").startswith("mine")
        assert tab.value(OVERFLOW) <= 0
    # Chromium's own page for a frame that is refused would ask for pictures
    assert {address.removeprefix(url).partition("?")[0] for address in tab.seen.requests} == {
        "/",
        "/state",
        "/report",
    }


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_shows_the_latest_answers_beside_question_and_data(
    browser: Browser, serve: Callable[[Run], Any], tmp_path: Path, width: int, language: str
) -> None:
    run, texts = Run(tmp_path / "mine"), words("web_page", language)  # type: ignore[arg-type]
    add_rows(run, 10)
    with serve(run) as url, browser.tab(url, width, language=language) as tab:
        tab.wait(f"{STATE} === {json.dumps(texts['watch_running'])}")
        assert tab.value("document.getElementById('answers').hidden"), "a training without answers has no empty box"
        add_answers(run, 10, "early", "early")
        tab.wait(f"{ANSWERS}.length === 2")
        add_answers(run, 20, "犬はわんわんでござる。", "a very-long-word-" * 40, reference="")
        heading = texts["watch_answers"].replace("{step}", "20")
        tab.wait(f"document.getElementById('answered').textContent === {json.dumps(heading)}")
        assert tab.value(ANSWERS) == [
            ["question 0?", "犬はわんわんでござる。"],
            ["question 1?", "a very-long-word-" * 40 + "…"],
        ]
        add_answers(run, 30, "short")
        tab.wait(f"{ANSWERS}.length === 1")
        assert tab.value(ANSWERS) == [["question 0?", "short", "reference 0"]]
        labels = tab.value("[...document.querySelectorAll('#asked dt')].map(e => e.innerText)")
        assert labels == [texts[f"watch_{name}"] for name in ("question", "answer", "reference")]
        assert tab.value(OVERFLOW) <= 0


def test_what_a_runs_file_says_stays_text(browser: Browser, serve: Callable[[Run], Any], tmp_path: Path) -> None:
    """Only finite numbers and known words reach the page; the run's name is text. The row without faults is shown."""
    run = Run(tmp_path / "<img src=x onerror=alert(1)>")
    spoilt: dict[str, Any] = dict.fromkeys(
        ("epoch", "task_loss", "alpha", "gate", "phase", "tokens_per_second", "planned_steps", "time"), HOSTILE
    )
    add_rows(run, 10)
    add_rows(run, 20, **spoilt)
    add_rows(run, 30, task_loss=float("nan"), alpha=float("inf"), gate=10**400, keep_kl=[1], peak_bytes=True)
    add_answers(run, 30, HOSTILE, reference=HOSTILE)
    add_answers(run, 30, "", question=[HOSTILE], reference={"a": 1}, cut="yes")
    with serve(run) as url, browser.tab(url) as tab:
        tab.wait(f"{STATE} === {json.dumps(ENGLISH['watch_running'])}")
        assert tab.value("document.querySelectorAll('main img').length") == 0
        assert tab.value("document.getElementById('title').textContent") == run.root.name
        assert tiles(tab)[ENGLISH["watch_loss"]].split() == ["3.75", "3.75"]
        assert tab.value(ANSWERS) == [["question 0?", HOSTILE, HOSTILE], ["", "–"]]
        assert tab.value("document.title") == f"{run.root.name} – AEGIS"
    assert tab.seen.complaints == []


def test_a_training_that_has_not_written_for_long_may_have_stopped(
    browser: Browser, serve: Callable[[Run], Any], tmp_path: Path
) -> None:
    run = Run(tmp_path / "mine")
    add_rows(run, 10, 20, time=time.time() - 600)
    with serve(run) as url, browser.tab(url, language="ja") as tab:
        tab.wait(f"{STATE}.includes('10 分')")
        assert words("web_page", "ja")["watch_silent"].partition("}")[2] in tab.value(STATE)


def test_a_server_that_has_ended_is_named(browser: Browser, serve: Callable[[Run], Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "mine")
    add_rows(run, 10)
    with serve(run) as url, browser.tab(url) as tab:
        tab.wait(f"{STATE} === {json.dumps(ENGLISH['watch_running'])}")
        tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        tab.wait(f"{STATE} === {json.dumps(ENGLISH['lost'])}")


def test_a_long_training_sends_no_more_points_than_a_screen_shows(tmp_path: Path) -> None:
    from aegis.report.web.watch import MAX_POINTS, state_of

    run = Run(tmp_path / "mine")
    add_rows(run, *range(1, 3 * MAX_POINTS + 1))
    series = state_of(run)["series"]
    heldout = [value for value in series["heldout_loss"] if value is not None]
    assert len(heldout) == 3 * MAX_POINTS // 20, "none of the few is left out"
    assert len(series["step"]) <= MAX_POINTS + len(heldout) + 1
    assert (series["step"][0], series["step"][-1]) == (1, 3 * MAX_POINTS)
    assert {len(values) for values in series.values()} == {len(series["step"])}


def test_a_report_of_an_earlier_training_is_not_shown(tmp_path: Path) -> None:
    """While the run trains again; the control is the same run when it has ended."""
    from aegis.report.web.watch import state_of

    run = Run(tmp_path / "mine")
    add_rows(run, 10, 20)
    for place in (run.adapter, run.report):
        place.mkdir()
    run.report_page.touch()
    assert (state_of(run)["state"], state_of(run)["report"]) == ("running", None)
    add_rows(run, 100)
    assert state_of(run)["state"] == "ended"
    assert state_of(run)["report"] > 0


def test_other_host_names_are_refused(serve: Callable[[Run], Any], tmp_path: Path) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    with serve(Run(tmp_path / "mine")) as url:
        for path in ("/", "/state", "/report"):
            with pytest.raises(HTTPError) as raised:
                urlopen(Request(url + path, headers={"Host": "evil.example"}), timeout=10)
            assert raised.value.code == 400
            raised.value.close()
        with urlopen(f"{url}/state", timeout=10) as answer:
            assert json.load(answer)["state"] == "waiting"
