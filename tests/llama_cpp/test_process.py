"""Tests of a tool that fails, hangs or prints too much, and of a dying parent: no partial file, no orphan process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import aegis
from aegis import progress
from aegis.errors import EnvironmentFault, ToolError
from aegis.llama_cpp import convert, process
from aegis.llama_cpp.process import KEPT_LINES, published, run_tool
from aegis.messages import Bilingual
from tests.processes import runs, wait_until

PREAMBLE = """
import os, sys, time
from pathlib import Path
out = Path(next(a for a in sys.argv if a.startswith("--outfile=")).removeprefix("--outfile="))
"""

FakeTree = Callable[[str], Path]


@pytest.fixture
def fake_tree(tmp_path: Path) -> FakeTree:
    """Make a llama.cpp checkout whose converter is the given code."""

    def make(code: str) -> Path:
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "convert_hf_to_gguf.py").write_text(PREAMBLE + code, encoding="utf-8")
        return tree

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.gguf"


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print('reason 17'); sys.exit(1)", r"code 1\..*reason 17"),
        ("out.write_bytes(b'half'); raise KeyError('reason 18')", "reason 18"),
        ("pass", "wrote no file"),
        ("out.touch()", "damaged file"),
        ("out.write_bytes(bytes(4096))", "damaged file"),
        ("os.abort()", "signal 6|code"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\x82\\xa0 mumbled'); sys.exit(2)", "mumbled"),
        ("print('\\x1b[31mred\\x1b[0m\\x07'); sys.exit(3)", r"^red$"),
        ("out.write_bytes(b'x'); print('no newline at the end', end='', flush=True); os._exit(4)", "no newline"),
    ],
)
def test_a_failure_is_reported_and_leaves_no_file(
    code: str, output: str, fake_tree: FakeTree, model: Path, out: Path
) -> None:
    out.write_bytes(b"old")
    with pytest.raises(ToolError, match=f"(?ms){output}"):
        convert(model, out, model_name="phi-3", tree=fake_tree(code))
    assert [out] == list(out.parent.iterdir())
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    "message",
    [
        "OSError: [Errno 28] No space left on device",
        "OSError: 1048576 requested and 1048096 written",
        "OSError: [WinError 112] There is not enough space on the disk",
    ],
)
def test_a_full_disk_is_the_environments_fault(message: str, fake_tree: FakeTree, model: Path, out: Path) -> None:
    code = f"out.write_bytes(bytes(3_000_000)); print({message!r}, file=sys.stderr); sys.exit(1)"
    with pytest.raises(EnvironmentFault, match=r"it had written 3 MB; \d+ MB are free"):
        convert(model, out, model_name="phi-3", tree=fake_tree(code))
    assert list(out.parent.iterdir()) == []


def test_much_output_takes_little_memory_and_the_last_lines_are_kept(
    fake_tree: FakeTree, model: Path, out: Path
) -> None:
    """200 MB: half in one endless line, half in short ones, on both streams."""
    code = """
for _ in range(100):
    os.write(1, b"x" * 1_000_000)
line = b"\\n" + b"y" * 999
for n in range(1000):
    os.write(1 + n % 2, line * 100)
os.write(2, b"".join(b"\\nlast %d" % n for n in range(30)))
sys.exit(1)
"""
    tracemalloc.start()
    try:
        with pytest.raises(ToolError) as caught:
            convert(model, out, model_name="phi-3", tree=fake_tree(code))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert caught.value.why.splitlines()[1:] == [f"last {n}" for n in range(30 - KEPT_LINES, 30)]


def test_a_tool_that_prints_nothing_for_too_long_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text("import time; print('went to sleep', flush=True); time.sleep(600)", encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(ToolError, match=r"(?s)nothing for 5 s.*went to sleep"), published(tmp_path / "o") as part:
        run_tool(
            Bilingual.same("sleeper"), script, [], part=part, title="", fraction=lambda line: None, silence_limit_s=5.0
        )
    assert time.monotonic() - began < 60
    assert [script] == list(tmp_path.iterdir())


@pytest.mark.parametrize("silent", [False, True])
def test_hours_during_which_every_process_was_stopped_do_not_count_as_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """After Ctrl-Z, or a machine that slept, the clock has jumped; a tool that is really silent is still ended."""
    script = tmp_path / "tool.py"
    works = (
        "import sys, time\nfor n in range(20): print(n, flush=True); time.sleep(0.1)\nopen(sys.argv[1], 'w').write('x')"
    )
    script.write_text("import time; time.sleep(600)" if silent else works, encoding="utf-8")
    clock, jumps = time.monotonic, [0.0]

    def jumping() -> float:
        jumps[0] += 10_000.0 if len(jumps) % 7 == 0 else 0.0
        jumps.append(0.0)
        return clock() + jumps[0]

    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=jumping))
    with ExitStack() as held:
        if silent:
            held.enter_context(pytest.raises(ToolError))
        part = held.enter_context(published(tmp_path / "o"))
        run_tool(
            *(Bilingual.same("tool"), script, [str(part)]), part=part, title="", fraction=lambda line: None,
            silence_limit_s=5.0 if silent else 15.0,
        )  # fmt: skip
    assert (tmp_path / "o").exists() == (not silent)


HANGING = """
out.write_bytes(b"half")
Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
time.sleep(600)
"""

PARENT = """
import sys
from pathlib import Path
from aegis.llama_cpp import convert, process
model, out, tree = map(Path, sys.argv[1:])
convert(model, out, model_name="phi-3", tree=tree)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("blow", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_the_child_ends_with_its_parent(blow: str, fake_tree: FakeTree, model: Path, out: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    source_root = Path(aegis.__file__).parents[1]
    path = os.pathsep.join([str(source_root), str(source_root.parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model), str(out), str(fake_tree(HANGING))],
        env={**os.environ, "PID_FILE": str(pid_file), "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
        child = int(pid_file.read_text())
        assert os.getpgid(child) != os.getpgid(parent.pid)  # Ctrl-C on a terminal reaches the parent only
        parent.send_signal(signal.Signals[blow])
        assert parent.wait(timeout=20) != 0
        wait_until(lambda: not runs(child))
        wait_until(lambda: list(out.parent.iterdir()) == [])
    finally:
        parent.kill()
        parent.wait()


class Recorder(progress.SilentReporter):
    def __init__(self) -> None:
        self.bars: dict[str, float] = {}

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[progress.Task]:
        bars = self.bars
        bars[title] = 0.0

        class Bar:
            def advance(self, amount: float = 1) -> None:
                assert amount > 0
                bars[title] += amount

            def note(self, text: str) -> None:
                raise NotImplementedError

        yield Bar()


def test_the_bar_reaches_its_end_or_stops_at_a_failure(fake_tree: FakeTree, model: Path, f16: Path, out: Path) -> None:
    """Lines as tqdm draws them, over each other."""
    recorder = Recorder()
    progress.install(recorder)
    draw = "print('Writing:  40%|####  | 1/2\\rWriting:  30%|### |', flush=True); time.sleep(0.5)\n"
    tree = fake_tree(draw + f"import shutil; shutil.copy({str(f16)!r}, out)")
    try:
        convert(model, out, model_name="phi-3", tree=tree)
        assert recorder.bars == {"Converting to GGUF": pytest.approx(100)}
        (tree / "convert_hf_to_gguf.py").write_text("import sys, time\n" + draw + "sys.exit(1)", encoding="utf-8")
        with pytest.raises(ToolError):
            convert(model, out, model_name="phi-3", tree=tree)
        assert recorder.bars == {"Converting to GGUF": pytest.approx(40)}
    finally:
        progress.install(progress.SilentReporter())


def test_the_tool_runs_with_utf8_without_network_and_with_the_trees_own_gguf(
    fake_tree: FakeTree, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_LOCAL_GGUF", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    code = """
names = ("PYTHONUTF8", "PYTHONIOENCODING", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NO_LOCAL_GGUF")
print("environment", [os.environ.get(name) for name in names])
print("path", sys.path[0] == str(Path(__file__).parent), sys.stdin.read() == "", "日本")
sys.exit(1)
"""
    with pytest.raises(ToolError) as caught:
        convert(model, out, model_name="phi-3", tree=fake_tree(code))
    assert "environment ['1', 'utf-8', '1', '1', None]" in caught.value.why
    assert "path True True 日本" in caught.value.why


def test_a_failed_block_publishes_no_file(tmp_path: Path) -> None:

    def interrupted() -> None:
        with published(tmp_path / "out") as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with published(tmp_path / "out") as part:
        part.write_bytes(b"whole")
    assert [(tmp_path / "out")] == list(tmp_path.iterdir())
