"""Tests of unwritable and unreadable paths without root's rights: exit 2 with the path, and no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.harness import Laboratory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities")


@pytest.fixture
def closed(tmp_path: Path) -> object:
    """Make a folder or file read-only, or unreadable, while the test runs."""
    modes: dict[Path, int] = {}

    def close(path: Path, mode: int) -> Path:
        modes[path] = path.stat().st_mode
        path.chmod(mode)
        return path

    yield close
    for path, mode in modes.items():
        path.chmod(mode)


def train(laboratory: Laboratory, folder: Path, *more: object, **environment: str) -> tuple[int, str]:
    ended = laboratory.forked.aegis(
        folder, *laboratory.arguments("train"), *more, environment=environment, powerless=True
    )
    assert "Traceback" not in ended.output, ended.output
    return ended.code, ended.output


@pytest.mark.parametrize("where", [".", "run", "run/checkpoints"])
def test_a_read_only_folder_is_an_error_with_a_fix(laboratory: Laboratory, tmp_path: Path, closed, where: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cache").mkdir()
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    closed(tmp_path / where, 0o500)
    code, output = train(laboratory, tmp_path)
    assert code == 2, output
    assert (where.rpartition("/")[2] if where != "." else "run") in output
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_read_only_cache_is_an_error_with_a_fix(laboratory: Laboratory, tmp_path: Path, closed) -> None:  # type: ignore[no-untyped-def]
    closed(tmp_path, 0o700)
    (tmp_path / "locked").mkdir()
    closed(tmp_path / "locked", 0o500)
    code, output = train(laboratory, tmp_path, AEGIS_CACHE_DIR=str(tmp_path / "locked"))
    assert code in (2, 3), output
    assert "locked" in output


@pytest.mark.parametrize("what", ["dataset", "base"])
def test_unreadable_input_is_an_error_with_a_fix(laboratory: Laboratory, tmp_path: Path, closed, what: str) -> None:  # type: ignore[no-untyped-def]
    data, base = tmp_path / "data.jsonl", tmp_path / "base"
    data.write_bytes(laboratory.data.read_bytes())
    base.mkdir()
    for path in laboratory.base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    closed({"dataset": data, "base": base / "model.safetensors"}[what], 0)
    code, output = train(laboratory, tmp_path, "--dataset", data, "--base-model", base)
    assert code in (2, 5), output
    assert {"dataset": "data.jsonl", "base": "model.safetensors"}[what] in output


def test_a_base_is_never_written(laboratory: Laboratory, tmp_path: Path, closed) -> None:  # type: ignore[no-untyped-def]
    """The pipeline runs on a read-only base."""
    base = tmp_path / "base"
    base.mkdir()
    for path in laboratory.base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
        closed(base / path.name, 0o400)
    closed(base, 0o500)
    ended = laboratory.forked.aegis(tmp_path, *laboratory.arguments("run"), "--base-model", base, powerless=True)
    assert ended.code == 0, ended.output


def test_a_file_at_the_runs_path_is_an_error(laboratory: Laboratory, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    code, output = train(laboratory, tmp_path)
    assert (code, "run" in output) == (2, True)
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"
