"""Tests of the READMEs: short, alike in both languages, and true of the program, the layers and the files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aegis.cli import app, registry
from aegis.model.families import PROVEN
from aegis.runs.run import Run

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # as `python tools/file_map.py` has it

import file_map  # noqa: E402

ENGLISH = ROOT / "README.md"
JAPANESE = ROOT / ".github" / "README.ja.md"
BOTH = (ENGLISH, JAPANESE)
FLOORS = (ROOT / ".github" / "CONTRIBUTING.md", ROOT / "pipeline" / "aegis" / "README.md")
MAX_LINES = 200
PROGRAM = re.compile(r"^(aegis [a-z]|ollama |git |cd |python3 |py |\. |\.venv)")
DOCUMENTS = [
    ENGLISH,
    *sorted(path for room in (".github", "pipeline", "tools", "tests") for path in (ROOT / room).rglob("*.md")),
]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands(readme: Path) -> list[str]:
    """Return the lines of code blocks that are typed, without their comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text(readme), re.M | re.S)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [" ".join(line.split()) for line in lines if PROGRAM.match(line)]


def named(readme: Path) -> list[str]:
    """Return the `aegis …` commands in the first column of the table of commands, in order."""
    return re.findall(r"^\| `(aegis [^`]*)` \|", text(readme), re.M)


def known() -> dict[str, Any]:
    """Return the program's commands by name."""
    return {name: entry.built for name, entry in registry.commands().items()}


def headings(path: Path) -> list[str]:
    """Return the headings with their marks, without code blocks."""
    return re.findall(r"^#+ .*", re.sub(r"^```.*?^```", "", text(path), flags=re.M | re.S), re.M)


def anchors(path: Path) -> set[str]:
    """Return the names after `#` that a document has, as GitHub derives them from the headings."""
    bare = (re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()) for heading in headings(path))
    return {heading.strip().replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_section_stands_twice(document: Path) -> None:
    found = headings(document)
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("readme", BOTH, ids=lambda path: path.name)
def test_a_readme_can_be_read_to_its_end(readme: Path) -> None:
    assert len(text(readme).splitlines()) <= MAX_LINES


def test_both_languages_have_the_same_shape_and_commands() -> None:
    assert len(commands(ENGLISH)) >= 8
    assert commands(ENGLISH) == commands(JAPANESE)
    assert named(ENGLISH) == named(JAPANESE)
    marks = [[heading.split()[0] for heading in headings(readme)] for readme in BOTH]
    assert marks[0] == marks[1]


def test_the_readme_has_the_steps_from_a_jsonl_to_ollama_in_order() -> None:
    wanted = ("git clone", "start.py setup", "aegis doctor", "aegis plan", "aegis run", "aegis ollama")
    lines = commands(ENGLISH)
    places = [next(i for i, line in enumerate(lines) if part in line) for part in wanted]
    assert places == sorted(places)


def test_every_command_has_a_row_in_the_readme() -> None:
    about = {"help", "version"}  # what they do is their name
    assert app.COMMAND_MODULES
    assert known().keys() - about == {row.split()[1] for row in named(ENGLISH)}


@pytest.mark.parametrize("line", sorted({line for line in commands(ENGLISH) if line.startswith("aegis ")}))
def test_the_program_takes_the_options_of_a_command(line: str) -> None:
    """Asked for help behind them, it reads them all and does nothing; the control is an option that does not exist."""
    words = shlex.split(line)[1:]

    def ends(*more: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "aegis", *words, *more], capture_output=True, check=False
        ).returncode

    parameters = known()[words[0]].params
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options
    assert ends("--help") == 0
    assert ends("--no-such-option") == 2


@pytest.mark.parametrize("readme", BOTH, ids=lambda path: path.name)
def test_every_option_in_the_readme_exists(readme: Path) -> None:
    """Except those of other programs, which are on a line with that program's name."""
    options = {"--help", "--debug"}
    for command in known().values():
        for parameter in command.params:
            options |= {*parameter.opts, *parameter.secondary_opts}
    spans = re.findall(r"`([^`\n]+)`", text(readme))
    ours = [span for span in spans if not span.startswith(("uv ", "wsl ", "torchrun"))]
    assert {word for span in ours for word in re.findall(r"(?<!\S)--[a-z][a-z0-9-]+", span)} <= options


def test_the_set_up_knows_its_commands() -> None:
    lines = [line for line in commands(ENGLISH) if "start.py" in line]
    assert {re.split(r"start\.py ", line)[1] for line in lines} == {"demo", "test", "setup"}
    for word in ("demo", "test", "setup"):
        asked = [sys.executable, "-c", f"import start; start.parse([{word!r}])"]
        assert subprocess.run(asked, cwd=ROOT / "tools", check=False).returncode == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_between_files_has_a_target(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", text(document), flags=re.M | re.S)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose):
        if "://" in target:
            continue
        found = (document.parent / target).resolve() if target else document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), (target, anchor)


def test_the_japanese_table_of_families_is_that_of_the_code() -> None:
    """tests/model/test_families.py has the English one, word for word."""
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|[^|]*\| (`[^|]*) \|", text(JAPANESE), re.M)
    wanted = {model_type: tuple(f"`{target}`" for target in family.targets) for model_type, family in PROVEN.items()}
    assert {model_type: tuple(targets.split(", ")) for model_type, targets in rows} == wanted


@pytest.mark.parametrize("readme", BOTH, ids=lambda path: path.name)
def test_the_readmes_tree_of_a_run_has_every_folder(readme: Path) -> None:
    tree = next(
        block for block in re.findall(r"^```\w*\n(.*?)^```", text(readme), re.M | re.S) if "artifacts/NAME" in block
    )
    places = [name for name in vars(Run) if isinstance(getattr(Run, name), property)]
    run = Run(Path("run"))
    assert "checkpoints" in places
    for place in (getattr(run, name) for name in places):
        if isinstance(place, Path):
            assert place.name in tree


@pytest.mark.parametrize("document", FLOORS, ids=lambda path: path.parent.name)
def test_the_layers_in_the_documents_are_those_of_import_linter(document: Path) -> None:
    contracts = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    block = re.search(r"^```floors\n(.*?)^```", text(document), re.M | re.S)
    assert block is not None
    assert block[1].splitlines() == layers


@pytest.mark.parametrize("name", file_map.READMES)
def test_the_file_map_is_up_to_date(name: str) -> None:
    """Otherwise: python tools/file_map.py --write."""
    written = text(ROOT / name)
    assert "<!-- files: " in written
    assert file_map.updated(written) == written


def test_a_file_map_follows_its_files(tmp_path: Path) -> None:
    room = tmp_path / "room"
    (room / "inner").mkdir(parents=True)
    (room / "__init__.py").write_text("")
    (room / "inner" / "shard.py").write_text('"""Reads a shard,\npiece by piece. Nothing else.\n\nMore."""\n')
    (room / "words.toml").write_text("# The words. More.\nkey = 1\n")
    readme = "Before\n<!-- files: room -->\nold\n<!-- end of files -->\nafter\n"
    first = file_map.updated(readme, tmp_path)
    lines = [" ".join(line.split()) for line in first.splitlines()]
    assert lines[0] == "Before"
    assert lines[-1] == "after"
    assert "old" not in lines
    assert lines[4:8] == ["room/", "words.toml The words", "inner/", "shard.py Reads a shard, piece by piece"]
    assert file_map.updated(first, tmp_path) == first
    (room / "inner" / "shard.py").write_text('"""Writes a shard."""\n')
    assert file_map.updated(first, tmp_path) != first
