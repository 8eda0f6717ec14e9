"""Tests of the test command: every check runs, pytest last, and the first failure decides the exit code."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from startup import commands
from startup.environment import Environment


@pytest.mark.parametrize(
    ("codes", "expected"),
    [({}, 0), ({"ruff": 1, "pytest": 5}, 1), ({"mypy": 2}, 2), ({"pytest": 1}, 1)],
)
def test_all_checks_run_and_the_first_failure_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: dict[str, int], expected: int
) -> None:
    ran: list[list[str]] = []

    def run(argv: Sequence[str | Path], *, cwd: Path, environment: dict[str, str]) -> int:
        ran.append([str(part) for part in argv[2:]])
        return codes.get(ran[-1][0], 0)

    monkeypatch.setattr(commands, "run_attached", run)
    assert commands._test(Environment(tmp_path), ["-k", "soul"]) == expected
    assert [argv[0] for argv in ran] == ["ruff", "ruff", "mypy", "pytest"]
    assert ran[-1] == ["pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder", "-k", "soul"]


def test_the_job_runs_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def run(argv: Sequence[str | Path], *, cwd: Path, environment: dict[str, str]) -> int:
        seen.update(environment)
        return 0

    monkeypatch.setattr(commands, "run_attached", run)
    assert commands._demo(Environment(tmp_path), []) == 0
    assert [seen[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "PIP_NO_INDEX")] == ["1", "1", "1"]
