"""Tests of awkward names for a run, a data set and a base: they work, or are refused, and are never executed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from aegis.runs.run import Run
from tests.faults.harness import Laboratory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows has no place for")

NAMES = {
    "spaces": "a b  c",
    "quotes": "\"double\" 'single' `back`",
    "an option": "-x",
    "another option": "--overwrite",
    "a command": "$(touch pwned);touch pwned|touch pwned&&touch pwned",
    "lines": "one\ntwo\r\nthree",
    "Japanese": "日本語のモデル",
    "a full-width space": "前\u3000後",
    "255 bytes": "n" * 255,
    "braces and percent": "{ftype} %s {0} ${HOME}",
    "a pattern": "[abc]*?",
    "upwards": "..hidden..",
    "not UTF-8": "bad\udcff",
    "right to left": "\u202egpj.model",
    "emoji": "🟢" * 20,
}


ALONE = "not UTF-8"
"""Refused, so it would hide what becomes of the others."""
TOGETHER = [name for name in NAMES if name != ALONE]
GROUPS = [[ALONE], *(TOGETHER[start::5] for start in range(5))]


@pytest.mark.parametrize("group", GROUPS, ids=" + ".join)
def test_the_pipeline_works_under_awkward_names(laboratory: Laboratory, tmp_path: Path, group: list[str]) -> None:
    """All names of a group stand in each path; another one is the last of base, data and run."""
    home, names = tmp_path / "home", [NAMES[name] for name in group]
    home.mkdir()
    base, data, run = (
        home.joinpath(place, *names[-turn:], *names[:-turn]) for turn, place in enumerate(("bases", "data", "runs"))
    )
    data = data.with_name(f"{data.name[:240]}.jsonl")
    base.parent.mkdir(parents=True)
    data.parent.mkdir(parents=True)
    shutil.copytree(laboratory.base, base)
    shutil.copyfile(laboratory.data, data)
    arguments = [*laboratory.arguments("run"), "--base-model", base, "--dataset", data, "--run", run]
    ended = laboratory.forked.aegis(home, *arguments, painted=True)
    assert "Traceback" not in ended.output, ended.output
    assert ended.code == (2 if group == [ALONE] else 0), ended.output
    assert not list(tmp_path.rglob("pwned"))
    assert {path.name for path in home.iterdir()} <= {"bases", "data", "runs", "cache"}
    if ended.code == 0:
        assert list(Run(run).gguf.glob("*-Q8_0.gguf"))


@pytest.mark.parametrize("name", ["-x", "$(touch pwned)"])
def test_a_relative_path_and_a_name_for_the_gguf_work(laboratory: Laboratory, tmp_path: Path, name: str) -> None:
    """As typed in the folder itself: --run=NAME --name NAME."""
    (tmp_path / "home").mkdir()
    ended = laboratory.forked.aegis(
        tmp_path / "home", *laboratory.arguments("run"), f"--run={name}", f"--name={name}", "--quiet"
    )
    assert ended.code in (0, 2), ended.output
    assert "Traceback" not in ended.output
    assert not list(tmp_path.rglob("pwned"))
