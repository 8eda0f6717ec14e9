"""Tests of the complete report: a broken probe is a finding, and "ready" is only shown without failures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from aegis import doctor
from aegis.cli.console.reporters import JsonReporter
from aegis.cli.screens import results
from aegis.doctor import Finding, examine, is_ready
from aegis.doctor import probes as examination
from aegis.doctor.finding import Name
from aegis.messages import VARIABLE, words
from aegis.messages.layout import cell_width
from tests.screen_texts import english_in

ROOT = Path(__file__).parents[2]


def raising(error: Exception) -> Callable[[], list[Finding]]:
    def probe() -> list[Finding]:
        raise error

    return probe


def test_an_exception_in_a_probe_is_reported_as_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = (
        ("one", raising(ModuleNotFoundError("No module named 'psutil'"))),
        ("two", lambda: [Finding("two", "ok", "fine")]),
        ("three", raising(OSError("torch's library is cut short"))),
    )
    monkeypatch.setattr(examination, "PROBES", probes)
    findings = list(examine())
    assert [(finding.name, finding.state) for finding in findings] == [
        ("one", "fail"),
        ("two", "ok"),
        ("three", "fail"),
    ]
    assert "No module named 'psutil'" in findings[0].detail
    assert all("start.py setup" in finding.cure for finding in findings if finding.state == "fail")
    assert not is_ready(findings)


FINDINGS = [
    Finding("python", "ok", "3.11.7"),
    Finding("ollama", "warn", "installed, but there is no answer at http://127.0.0.1:11434", "ollama serve"),
]


def test_the_report_is_shown_as_a_table() -> None:
    """A line each, what to type under it, and a verdict that never says ready beside a failure."""
    lines = results.diagnosed(FINDINGS).splitlines()
    assert lines == [
        "ok    Python  3.11.7",
        "warn  Ollama  installed, but there is no answer at http://127.0.0.1:11434",
        "      do: ollama serve",
        "ready; check 1 of 2 lines",
    ]
    text = results.diagnosed([*FINDINGS, Finding("torch", "fail", "a CPU-only build", "pip install torch")])
    assert text.splitlines()[-1] == "not ready: torch; after each fix run: aegis doctor"
    assert results.diagnosed(FINDINGS[:1]).splitlines()[-1] == "ready"


def test_the_report_is_in_the_users_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine in Japanese, only names are English.

    The control: the English texts do have the searched words.
    """
    english = examine()
    assert english_in(next(finding.detail for finding in english if finding.name == "packages"))
    assert sum(bool(english_in(text)) for text in words("doctor", "en").values()) > 50
    assert [text for text in words("doctor", "ja").values() if english_in(text)] == []
    monkeypatch.setenv(VARIABLE, "ja")
    findings = list(examine())
    assert [finding for finding in findings if english_in(f"{finding.detail}\n{finding.cure}")] == []
    assert {finding.name for finding in findings} >= {"python", "set_up", "packages", "torch", "memory", "disk_runs"}
    assert {finding.state for finding in findings} <= {"ok", "warn", "fail"}


PROPER = {"gpu", "hub", "llama_cpp", "ollama", "python", "torch", "triton"}
"""Names that are the same in every language."""


def test_names_are_translated_for_readers_and_not_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = get_args(Name)
    findings = [Finding(name, "fail", "あ") for name in names]
    english = results.diagnosed(findings)
    assert all(text in english for text in words("finding", "en").values())
    monkeypatch.setenv(VARIABLE, "ja")
    lines = results.diagnosed(findings).splitlines()
    shown = [line.removeprefix("fail").removesuffix("あ").strip() for line in lines[:-1]]
    translated = [name for name, text in zip(names, shown, strict=True) if re.search("[ぁ-ヿ一-鿿]", text)]
    assert set(names) - set(translated) == PROPER
    assert {cell_width(line) for line in lines[:-1]} == {cell_width(lines[0])}
    assert lines[-1].startswith(f"まだ準備ができていません: {', '.join(shown)}")
    JsonReporter().result("", {"findings": findings})
    printed = json.loads(capsys.readouterr().out)["report"]["findings"]
    assert [finding["name"] for finding in printed] == list(names)


def test_columns_are_aligned_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor is asked when packages are missing, too."""
    monkeypatch.setenv(VARIABLE, "ja")
    with_rich = results.diagnosed([Finding("set_up", "ok", "x"), Finding("disk_temporary", "ok", "x")])
    monkeypatch.setitem(sys.modules, "rich.cells", None)
    with pytest.raises(ImportError):
        import rich.cells  # noqa: F401
    assert results.diagnosed([Finding("set_up", "ok", "x"), Finding("disk_temporary", "ok", "x")]) == with_rich


def test_a_narrow_terminal_wraps_text_without_breaking_an_address() -> None:
    text = results.diagnosed(FINDINGS, 40)
    assert "http://127.0.0.1:11434" in text
    assert all(len(line) <= 40 for line in text.splitlines())


def run_aegis(*arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_HUB"))}
    parts = [part for part in (path, str(ROOT / "pipeline"), str(ROOT), os.environ.get("PYTHONPATH", "")) if part]
    return subprocess.run(
        [sys.executable, "-m", "aegis", *arguments],
        env=inherited | {"PYTHONPATH": os.pathsep.join(parts), "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def test_the_command_prints_the_report_and_its_exit_code() -> None:
    """This machine for real, as a program reads it: one result, a finding of every probe that has one, and the code."""
    done = run_aegis("doctor", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    report = rows[-1]["report"]
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert set(states) >= {"python", "set_up", "packages", "torch", "kernel", "memory", "converter", "llama_cpp"}
    assert states["kernel"] == states["llama_cpp"] == states["packages"] == "ok", report
    assert report["ready"] == ("fail" not in states.values())
    assert done.returncode == (0 if report["ready"] else 3), done.stderr
    assert all(finding["cure"] for finding in report["findings"] if finding["state"] == "fail")


@pytest.mark.parametrize("missing", ["bitsandbytes", "typer", "pydantic"])
def test_a_set_up_that_was_cut_short_is_never_ready(tmp_path: Path, missing: str) -> None:
    """A package that does not import: a kernel's, or one that the command line itself is made of."""
    (tmp_path / f"{missing}.py").write_text("raise ImportError('half installed', name=__name__)\n", encoding="utf-8")
    done = run_aegis("doctor", path=str(tmp_path))
    printed = done.stdout + done.stderr
    assert done.returncode == 3, printed
    assert "Traceback" not in printed
    assert "half installed" in printed
    assert "not ready" in printed
    assert "start.py setup" in printed or "pip install" in printed


def test_no_package_is_imported_before_its_presence_is_checked() -> None:
    """The package itself needs the standard library only."""
    code = "import sys; before = set(sys.modules); import aegis.doctor; print(sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert doctor.PROBES
