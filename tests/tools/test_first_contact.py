"""Tests of container, notebooks, workflows and forms: what they name exists."""

import ast
import json
import re
from pathlib import Path

import pytest
import start
import yaml

import aegis
from aegis.cli import app, registry
from aegis.config.presets import PRESETS

GITHUB = Path(__file__).resolve().parents[2] / ".github"
NOTEBOOKS = sorted((GITHUB / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> dict[str, str]:
    """Return the code of each cell by the cell's name."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in found if cell["cell_type"] == "code"}


def without_comments(code: str) -> str:
    return re.sub(r"\s*(?<!\S)# .*", "", code)


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_every_form_and_workflow_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_workflows_and_container_use_commands_of_start_py() -> None:
    files = [*(GITHUB / "workflows").glob("*.yml"), GITHUB / "docker" / "Dockerfile"]
    found = [word for file in files for word in re.findall(r"start\.py (\w+)", file.read_text(encoding="utf-8"))]
    assert {"demo", "setup"} <= set(found)
    for word in found:
        start.parse([word])


def test_the_workflow_covers_three_systems_and_the_oldest_and_newest_python() -> None:
    jobs = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["first-contact"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "windows", "macos"}
    assert matrix["python"] == ["3.11", "3.14"]


def test_the_citation_has_this_version() -> None:
    citation = yaml.safe_load((GITHUB / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == aegis.__version__
    assert citation["license"] == "MIT"


def test_both_languages_have_the_same_cells() -> None:
    assert [path.name for path in NOTEBOOKS] == ["aegis.en.ipynb", "aegis.ja.ipynb"]
    english, japanese = (cells(path) for path in NOTEBOOKS)
    assert {name: without_comments(code) for name, code in english.items()} == {
        name: without_comments(code) for name, code in japanese.items()
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_python_and_name_commands_that_exist(notebook: Path) -> None:
    text = "\n".join(cells(notebook).values())
    # a shell line or a magic is a statement to IPython
    ast.parse(re.sub(r"^(\s*)[!%].*", r"\1pass", text, flags=re.MULTILINE))
    commands = re.findall(r"\baegis (\w[\w-]*)", without_comments(text))
    assert {"doctor", "run"} <= set(commands)
    assert app.COMMAND_MODULES
    assert set(commands) <= set(registry.commands())
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(PRESETS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_have_no_outputs(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
