"""The committed constraints: exact, portable, and enough for every dependency of the project."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from startup.constraints import normalise, pins_of


def lines(tools: Path) -> list[str]:
    text = (tools / "constraints.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def pins(tools: Path) -> dict[str, str]:
    return {name: version for name, _, version in (line.partition("==") for line in lines(tools))}


def test_every_line_is_an_exact_public_version(tools: Path) -> None:
    """No address, no local label such as +cpu, no editable line: it holds on every index."""
    for line in lines(tools):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.!]*", line), line
    assert "://" not in (tools / "constraints.txt").read_text(encoding="utf-8")


def test_sorted_and_without_repeats(tools: Path) -> None:
    names = [line.partition("==")[0] for line in lines(tools)]
    assert names == sorted(set(names))


def test_installers_are_not_bound(pins: dict[str, str]) -> None:
    assert not {"pip", "setuptools", "aegis-soul"} & set(pins)


def test_every_dependency_is_bound_within_its_bounds(tools: Path, pins: dict[str, str]) -> None:
    project = tomllib.loads((tools.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    missing = [r.name for r in wanted if normalise(r.name) not in pins]
    assert missing == [], "run `python tools/start.py lock`"
    outside = [str(r) for r in wanted if Version(pins[normalise(r.name)]) not in r.specifier]
    assert outside == [], "run `python tools/start.py lock`"


def test_the_vendored_converter_is_of_the_same_release(tools: Path, pins: dict[str, str]) -> None:
    pin = (tools.parent / "vendor_llama_cpp" / "pin.toml").read_text(encoding="utf-8")
    assert f'"{pins["llama-cpp-python"]}"' in pin


def test_pins_of_a_report() -> None:
    """Names are normalised; the project, installers, platform packages and local labels go."""
    names = {
        "Torch": "2.13.0+cpu",
        "typing_extensions": "4.16.0",
        "Aegis.Soul": "0.1.0",
        "pip": "26.0",
        "nvidia-cublas": "13.0",
        "triton": "3.5.0",
    }
    report: dict[str, object] = {
        "install": [{"metadata": {"name": name, "version": version}} for name, version in names.items()]
    }
    assert pins_of(report, "aegis-soul") == {"torch": "2.13.0", "typing-extensions": "4.16.0"}
