"""Tests of a confined process: requests and answers are unchanged, and nothing it does blocks its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aegis.errors import DataError
from aegis.llama_cpp.confined import Confined, Ended, Failed, Message, Overdue, TooLarge, process
from tests.processes import runs, wait_until

STRANGE = "tests.llama_cpp.confined.strange"
SECONDS = 60.0
ONE_CORE = Message({"do": "be on one core"})
"""The setup for a test of the system's limit on processor time, which grows with the number of cores."""
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(autouse=True)
def _strange_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A confined process finds the package aegis; these tests' own module is found by PYTHONPATH."""
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


@pytest.fixture
def confined() -> Iterator[Confined]:
    process = Confined(STRANGE)
    yield process
    process.close()


def recalled(confined: Confined) -> dict[str, object]:
    return confined.ask({"do": "recall"}, seconds=SECONDS).fields


def test_a_written_message_is_read_back_unchanged(confined: Confined) -> None:
    output = {"do": "echo", "text": "春\ud800\n", "nested": [{"a": None, "b": 1.5}]}
    answer = confined.ask({**output}, b"\x00\xff", seconds=SECONDS)
    assert (answer.fields, answer.blob) == (output, b"\x00\xff")


def test_one_process_answers_many_requests_after_its_setup() -> None:
    confined = Confined(STRANGE, Message({"do": "remember", "what": "the setup"}))
    first, second = recalled(confined), recalled(confined)
    assert first == second == {"kept": ["the setup"], "pid": confined.pid}
    confined.close()
    assert confined.pid is None


def test_a_module_that_cannot_be_imported_ends_the_process_at_once() -> None:
    confined = Confined("aegis.no_such_module")
    with pytest.raises(Ended):
        recalled(confined)


def test_a_setup_that_fails_fails_every_request() -> None:
    confined = Confined(STRANGE, Message({"do": "raise"}))
    for _ in range(2):
        with pytest.raises(Failed, match="its own words"):
            recalled(confined)
    assert confined.pid is None


@pytest.mark.parametrize("what", ["loop", "one call into C"])
def test_an_endless_request_is_killed_at_its_deadline(confined: Confined, what: str) -> None:
    """Also where no other thread of it would get to run; and the next request is answered."""
    confined.start(SECONDS)
    pid = confined.pid
    assert pid is not None
    with pytest.raises(Overdue):
        confined.ask({"do": what}, seconds=0.3)
    assert not psutil.pid_exists(pid)
    assert recalled(confined)["pid"] != pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits")
def test_an_allocation_beyond_the_bound_fails_before_memory_is_used(confined: Confined) -> None:
    pid = recalled(confined)["pid"]
    with pytest.raises(TooLarge):
        confined.ask({"do": "climb"}, seconds=SECONDS, memory_bytes=100 << 20)
    assert recalled(confined)["pid"] == pid, "which did not even end"


def test_without_a_memory_limit_of_the_system_the_process_is_watched(
    confined: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and macOS: it is killed when it has grown too far."""
    envelope = process._envelope
    monkeypatch.setattr(process, "_envelope", lambda *request: envelope(*request[:-1], None))
    for growth in ("climb", "climb while it answers"):
        with pytest.raises(TooLarge):
            list(confined.stream({"do": growth}, seconds=SECONDS, memory_bytes=100 << 20))
        assert recalled(confined)["kept"] == []


def test_a_crash_is_reported_with_its_cause_and_the_next_request_is_answered(confined: Confined) -> None:
    with pytest.raises(Ended, match=r"signal|exit code"):
        confined.ask({"do": "crash"}, seconds=SECONDS)
    assert recalled(confined)["kept"] == []


def test_a_killed_process_is_replaced(confined: Confined) -> None:
    before = recalled(confined)["pid"]
    assert isinstance(before, int)
    psutil.Process(before).kill()
    assert recalled(confined)["pid"] != before


def test_an_error_in_the_confined_process_is_raised_by_the_caller(confined: Confined) -> None:
    with pytest.raises(Failed, match=r"^its own words$") as failed:
        confined.ask({"do": "raise"}, seconds=SECONDS)
    assert failed.value.kind == "ValueError"
    assert "strange.py" in failed.value.trace
    with pytest.raises(DataError) as refused:
        confined.ask({"do": "refuse"}, seconds=SECONDS)
    assert refused.value.key == "chat.no_template"
    assert refused.value.values == {"where": "row 3"}


def test_an_error_of_ten_megabytes_is_cut(confined: Confined) -> None:
    with pytest.raises(Failed) as failed:
        confined.ask({"do": "raise", "times": 10**6}, seconds=SECONDS)
    assert len(str(failed.value)) <= 2000
    assert len(failed.value.trace) <= 20_000


def test_many_answers_take_longer_than_one_may() -> None:
    """The limits are those of one: also the system's on processor time, which a long answer of a model would reach."""
    confined = Confined(STRANGE, ONE_CORE)
    confined.start(SECONDS)
    assert len(list(confined.stream({"do": "work for long"}, seconds=3.0))) == 60
    confined.close()


def test_an_answer_that_is_reported_under_way_gets_a_new_deadline(confined: Confined) -> None:
    confined.start(SECONDS)
    assert confined.ask({"do": "take four seconds"}, seconds=3.0) == Message({})


def test_printed_text_is_not_an_answer_and_its_control_codes_are_escaped(confined: Confined) -> None:
    answers = confined.stream({"do": "print"}, seconds=SECONDS)
    assert next(answers) == Message({})
    with pytest.raises(Ended) as ended:
        next(answers)
    assert str(ended.value) == "exit code 7\n\\x1b[31mnot an answer"


def test_a_caller_that_stops_listening_cancels_the_request(confined: Confined) -> None:
    confined.start(SECONDS)
    pid = confined.pid
    for answer in confined.stream({"do": "count"}, seconds=SECONDS):
        if answer.fields["number"] == 3:
            break
    assert recalled(confined)["pid"] == pid


def test_a_request_is_cancelled_from_other_threads_once_it_is_taken_up(confined: Confined) -> None:
    """A cancellation may come too early, so it is repeated; it is never written into the middle of a request."""
    confined.start(SECONDS)
    pid = confined.pid
    over = threading.Event()

    def leave() -> None:
        while not over.wait(0.001):
            confined.leave_off()

    threads = [threading.Thread(target=leave) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(100):
            for answer in confined.stream({"do": "count"}, b"x" * 1000, seconds=5.0):
                assert answer.fields["number"] < 10_000
    finally:
        over.set()
        sys.setswitchinterval(before)
        for thread in threads:
            thread.join()
    assert recalled(confined)["pid"] == pid


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_confined_process_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C at once; a killed parent's when the system has counted its processor time."""
    script = tmp_path / "asks.py"
    script.write_text(
        "from aegis.llama_cpp.confined import Confined, Message\n"
        f"confined = Confined({STRANGE!r}, Message({ONE_CORE.fields!r}))\n"
        "confined.start(60)\n"
        "print(confined.pid, flush=True)\n"
        "confined.ask({'do': 'one call into C'}, seconds=6.0)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        before = child.cpu_times().user
        wait_until(lambda: child.cpu_times().user > before + 0.3)
        os.kill(parent.pid, number)
        assert parent.wait(60) == -number
    if number == signal.SIGINT:
        assert not runs(child.pid)
    child.wait(120)


def test_few_answers_wait_for_a_slow_reader(confined: Confined, tmp_path: Path) -> None:
    """1,000 answers of a MiB: the process waits with the rest, and a caller that leaves is not kept."""
    counter = tmp_path / "counter"
    answers = confined.stream({"do": "fill", "counter": str(counter)}, seconds=SECONDS)
    next(answers)
    wait_until(lambda: counter.read_text(encoding="ascii") != "1", limit_s=60)
    time.sleep(1)
    assert int(counter.read_text(encoding="ascii")) < 12
    assert sum(1 for _ in answers) == 999
