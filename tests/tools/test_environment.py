"""Tests that the stamp shows a ready environment only if it is, and that an incomplete one is repaired."""

import json
import os
import re
import venv
from pathlib import Path

import pytest
from startup import environment as module
from startup.console import StartError
from startup.environment import Environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Return a checkout whose environment is set up according to its stamp."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "constraints.txt").write_text("rich==15.0.0\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    made = Environment(tmp_path)
    made.scripts.mkdir(parents=True)
    made.python.touch()
    made.program("aegis").touch()
    (tmp_path / "converter").mkdir()
    made.own.mkdir()
    stamp = {"key": made.key(), "converter": str(tmp_path / "converter"), "extra": ""}
    made._stamp.write_text(json.dumps(stamp), encoding="utf-8")
    return made


def test_an_environment_with_a_matching_stamp_is_ready(environment: Environment) -> None:
    assert environment.is_ready()


@pytest.mark.parametrize("name", ["pyproject.toml", "tools/constraints.txt"])
def test_an_environment_is_not_ready_after_an_edit(environment: Environment, name: str) -> None:
    with (environment.root / name).open("a", encoding="utf-8") as stream:
        stream.write("# edited\n")
    assert not environment.is_ready()


@pytest.mark.parametrize("text", ["", '{"key": "', "[]", "{}", '{"key": 1, "converter": null}'])
def test_an_environment_with_a_damaged_stamp_is_not_ready(environment: Environment, text: str) -> None:
    environment._stamp.write_text(text, encoding="utf-8")
    assert not environment.is_ready()


def test_an_environment_without_the_stamped_files_is_not_ready(environment: Environment) -> None:
    environment.python.unlink()
    assert not environment.is_ready()


def test_an_environment_without_the_converter_is_not_ready(environment: Environment) -> None:
    (environment.root / "converter").rmdir()
    assert not environment.is_ready()


def test_an_environment_that_was_moved_is_not_ready(environment: Environment, tmp_path: Path) -> None:
    """The scripts of a moved checkout name the old folder, so it is set up again."""
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert not Environment(moved).is_ready()


def test_a_folder_that_is_not_an_environment_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / ".venv" / "notes.txt"
    precious.parent.mkdir()
    precious.write_text("mine", encoding="utf-8")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "constraints.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(StartError, match="not a virtual environment"):
        Environment(tmp_path).set_up()
    assert [precious] == list(precious.parent.iterdir())


def test_the_tests_packages_have_their_own_stamp(environment: Environment) -> None:
    """An environment that users have is not ready for the tests; one for the tests is ready for users."""
    for_tests = Environment(environment.root, extra="dev")
    assert not for_tests.is_ready()
    stamp = json.loads(environment._stamp.read_text(encoding="utf-8"))
    environment._stamp.write_text(json.dumps({**stamp, "extra": "dev"}), encoding="utf-8")
    assert for_tests.is_ready()
    assert environment.is_ready()


def made_by_venv(environment: Environment) -> Environment:
    environment.clear()
    venv.EnvBuilder(with_pip=False, symlinks=True).create(environment.folder)
    return environment


def test_an_environment_is_usable_if_it_is_of_this_python_and_this_folder(environment: Environment) -> None:
    assert not environment.is_usable()  # the control: its Python is an empty file
    made_by_venv(environment)
    assert environment.is_usable()
    environment.program("aegis").write_text(f"#!{environment.python}\n", encoding="utf-8")
    assert environment.is_usable()
    environment.program("aegis").write_text("#!/elsewhere/.venv/bin/python\n", encoding="utf-8")
    assert not environment.is_usable()


def test_an_environment_of_another_python_is_not_usable(environment: Environment) -> None:
    made = made_by_venv(environment).folder / "pyvenv.cfg"
    made.write_text(re.sub(r"(?m)^version = .*", "version_info = 3.10.1", made.read_text("utf-8")), encoding="utf-8")
    assert not environment.is_usable()


@pytest.mark.skipif(os.name == "nt", reason="needs a symbolic link")
@pytest.mark.parametrize("python", ["/usr/bin/false", "/no/such/python"])
def test_an_environment_whose_python_does_not_run_is_not_usable(environment: Environment, python: str) -> None:
    made_by_venv(environment).python.unlink()
    environment.python.symlink_to(python)
    assert not environment.is_usable()


def test_clearing_keeps_the_set_ups_own_folder(environment: Environment) -> None:
    environment.log.touch()
    environment.clear()
    assert [entry.name for entry in environment.folder.iterdir()] == ["start"]
    assert environment.log.is_file()


def test_too_little_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_nvidia_driver", lambda: False)
    module.check_space(tmp_path)
    monkeypatch.setattr(module, "NEEDED_BYTES", 10**18)
    with pytest.raises(StartError, match="Too little disk space"):
        module.check_space(tmp_path)
