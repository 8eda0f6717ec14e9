"""Tests that the import contracts of pyproject.toml hold, and that what needs no torch loads none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def contracts(file: Path) -> int:
    return lint_imports(config_filename=str(file), no_cache=True, no_logo=True)


def test_imports_go_down_the_layers_and_no_stage_imports_a_stage() -> None:
    assert contracts(PYPROJECT) == 0


def test_an_import_upwards_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: with errors above cli, the imports that are there run upwards."""
    text = PYPROJECT.read_text(encoding="utf-8")
    assert '    "cli",\n' in text
    other = tmp_path / "pyproject.toml"
    other.write_text(
        text.replace('    "errors",\n', "").replace('    "cli",\n', '    "errors",\n    "cli",\n'), "utf-8"
    )
    assert contracts(other) == 1
    assert "aegis.errors" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "loads"), [("stages.push", False), ("cli.app", False), ("stages.merge", True)])
def test_commands_that_only_read_reports_start_without_torch(module: str, loads: bool) -> None:
    """It takes seconds to load. merge is the control."""
    code = f"import sys, aegis.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == loads
