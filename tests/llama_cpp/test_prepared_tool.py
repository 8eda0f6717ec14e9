"""Tests of a converter's process that is started before its input is there: used once, or ended without a trace."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.errors import ToolError
from aegis.llama_cpp import PreparedTool, convert, prepared_converter
from tests.processes import runs, wait_until

WHO = """
import json, os, sys
from pathlib import Path
out = next(a for a in sys.argv if a.startswith("--outfile=")).removeprefix("--outfile=")
said = {"pid": os.getpid(), "folder": os.getcwd(), "loaded": "colorsys" in sys.modules, "arguments": sys.argv[1:]}
Path(__file__).with_name("said.json").write_text(json.dumps(said))
sys.exit("asked")
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A llama.cpp checkout whose converter writes down who and where it is, and fails."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "convert_hf_to_gguf.py").write_text(WHO, encoding="utf-8")
    return tmp_path / "tree"


@pytest.fixture
def prepare(tree: Path) -> Callable[[], PreparedTool]:
    return lambda: PreparedTool(tree / "convert_hf_to_gguf.py", ["colorsys"], import_from=tree, environment={})


def pid_of(tool: PreparedTool) -> int:
    assert tool._child is not None
    return tool._child.pid


def said_by_the_converter(model: Path, tree: Path, out: Path, prepared: PreparedTool | None) -> dict[str, object]:
    out.mkdir(exist_ok=True)
    with pytest.raises(ToolError, match="asked"):
        convert(model, out / "model.gguf", model_name="a name", tree=tree, prepared=prepared)
    assert not list(out.iterdir())
    found: dict[str, object] = json.loads((tree / "said.json").read_text(encoding="utf-8"))
    return found


def test_it_runs_the_script_once_as_a_fresh_process_would(
    model: Path, tree: Path, tmp_path: Path, prepare: Callable[[], PreparedTool]
) -> None:
    """In the output's folder, with the same arguments; a second conversion starts a process of its own."""
    with prepare() as tool:
        pid = pid_of(tool)
        found = said_by_the_converter(model, tree, tmp_path / "out", tool)
        fresh = said_by_the_converter(model, tree, tmp_path / "out", tool)
    assert found["pid"] == pid != fresh["pid"]
    assert (found["loaded"], fresh["loaded"]) == (True, False)
    assert found["folder"] == fresh["folder"] == str(tmp_path / "out")
    named = [[word for word in one["arguments"] if "outfile" not in word] for one in (found, fresh)]  # type: ignore[attr-defined]
    assert named[0] == named[1]


def test_one_of_another_tree_is_not_used(
    model: Path, tree: Path, tmp_path: Path, prepare: Callable[[], PreparedTool]
) -> None:
    other = tmp_path / "other"
    tree.rename(other)
    tree.mkdir()
    (tree / "convert_hf_to_gguf.py").write_text(WHO, encoding="utf-8")
    with prepare() as tool:
        assert said_by_the_converter(model, other, tmp_path / "out", tool)["pid"] != pid_of(tool)


def test_one_that_has_ended_is_replaced(
    model: Path, tree: Path, tmp_path: Path, prepare: Callable[[], PreparedTool]
) -> None:
    with prepare() as tool:
        pid = pid_of(tool)
        os.kill(pid, signal.SIGKILL)
        assert tool._child is not None
        tool._child.wait(20)
        assert said_by_the_converter(model, tree, tmp_path / "out", tool)["pid"] != pid


def test_one_that_is_not_used_ends_with_the_block_or_with_its_parent(prepare: Callable[[], PreparedTool]) -> None:
    with prepare() as tool:
        pid = pid_of(tool)
        assert runs(pid)
    assert not runs(pid)
    with prepare() as left:
        child = left._child
        assert child is not None
        assert child.stdin is not None
        child.stdin.close()  # as the system does when this process ends
        wait_until(lambda: child.poll() is not None)


def test_there_is_none_without_a_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    with prepared_converter() as tool:
        assert tool is None
