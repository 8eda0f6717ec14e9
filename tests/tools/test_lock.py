"""Tests of the committed constraints: exact, portable, with hashes, and for every dependency."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from startup.torch_build import blocks

PLATFORMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(tools: Path) -> list[Requirement]:
    text = (tools / "constraints.txt").read_text(encoding="utf-8")
    return [Requirement(block.split(" \\\n")[0]) for block in blocks(text)]


@pytest.mark.parametrize("name", ["constraints.txt", "startup/uv.txt"])
def test_every_package_is_exact_and_has_hashes_and_no_address(tools: Path, name: str) -> None:
    text = (tools / name).read_text(encoding="utf-8")
    for block in blocks(text):
        first, *hashes = block.rstrip("\n").split(" \\\n")
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.!]*( ; .*)?", first), first
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes)
    assert "://" not in text
    assert "index" not in text


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_dependency_is_bound_once_on_every_platform(tools: Path, platform: str, python: str) -> None:
    """Each dependency that holds there has one version that holds there, within its bounds."""
    where = {**PLATFORMS[platform], "python_version": python, "python_full_version": f"{python}.0"}
    project = tomllib.loads((tools.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    bound: dict[str, list[str]] = {}
    for requirement in locked(tools):
        if requirement.marker is None or requirement.marker.evaluate(where):
            bound.setdefault(requirement.name, []).append(str(requirement.specifier).removeprefix("=="))
    assert all(len(versions) == 1 for versions in bound.values())
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate(where):
            versions = bound.get(canonicalize_name(requirement.name), [])
            assert [v for v in versions if v in requirement.specifier], f"{requirement}: refresh tools/constraints.txt"


def test_packages_of_windows_only_are_locked_for_windows(tools: Path) -> None:
    marker = next(requirement.marker for requirement in locked(tools) if requirement.name == "colorama")
    assert marker is not None
    assert [name for name, where in PLATFORMS.items() if marker.evaluate(where)] == ["Windows"]


def test_build_dependencies_are_bound_too(tools: Path) -> None:
    """What the project and llama.cpp's binding are built with has the same file as constraints."""
    project = tomllib.loads((tools.parent / "pyproject.toml").read_text(encoding="utf-8"))
    built_with = (tools / "startup" / "build.in").read_text(encoding="utf-8").splitlines()
    assert set(project["build-system"]["requires"]) <= set(built_with)
    assert {"setuptools", "scikit-build-core", "cmake", "ninja"} <= {requirement.name for requirement in locked(tools)}


def test_the_vendored_converter_is_of_the_same_release(tools: Path) -> None:
    pin = tomllib.loads((tools.parent / "vendor_llama_cpp" / "pin.toml").read_text(encoding="utf-8"))
    text = (tools / "constraints.txt").read_text(encoding="utf-8")
    block = next(block for block in blocks(text) if block.startswith("llama-cpp-python=="))
    assert block.startswith(f"llama-cpp-python=={pin['version']} ")
    assert pin["sha256"] in block
