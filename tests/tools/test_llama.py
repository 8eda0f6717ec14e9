"""Tests that llama.cpp's binding comes from a pinned wheel, or is compiled without unused libraries."""

import re
from pathlib import Path

import pytest
from startup import llama
from startup.console import StartError


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", "manylinux2014_x86_64"),
        ("linux", "aarch64", "manylinux2014_aarch64"),
        ("win32", "AMD64", "win_amd64"),
    ],
)
def test_a_platform_with_a_published_wheel_has_its_name(
    tools: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, wanted: str
) -> None:
    monkeypatch.delenv(llama.VARIABLE, raising=False)
    assert llama.platform_tag(system, machine) == wanted
    monkeypatch.setattr(llama, "platform_tag", lambda *_: wanted)
    wheel = llama.wheel_for_this_machine(tools.parent)
    assert wheel is not None
    assert re.fullmatch(rf"https://.*/llama_cpp_python-[^/]*{wanted}[^/]*\.whl#sha256=[0-9a-f]{{64}}", wheel)


@pytest.mark.parametrize(
    ("system", "machine"),
    [("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "ARM64"), ("linux", "riscv64")],
)
def test_a_platform_without_a_published_wheel_compiles(
    tools: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.delenv(llama.VARIABLE, raising=False)
    tag = llama.platform_tag(system, machine)
    monkeypatch.setattr(llama, "platform_tag", lambda *_: tag)
    assert llama.wheel_for_this_machine(tools.parent) is None


def test_the_published_wheels_are_of_the_pinned_release(tools: Path) -> None:
    import tomllib

    pin = tomllib.loads((tools.parent / "vendor_llama_cpp" / "pin.toml").read_text(encoding="utf-8"))
    assert f"v{pin['version']}/" in pin["wheels"]["at"]
    assert all(name.startswith(f"llama_cpp_python-{pin['version']}-") for name in pin["wheels"]["sha256"])


def test_an_address_without_a_hash_is_refused(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llama.VARIABLE, "https://wheels.example/binding.whl")
    with pytest.raises(StartError, match="without a hash"):
        llama.wheel_for_this_machine(tools.parent)
    monkeypatch.setenv(llama.VARIABLE, "none")
    assert llama.wheel_for_this_machine(tools.parent) is None


def test_a_file_of_the_users_own_needs_no_hash(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llama.VARIABLE, "~/binding.whl")
    assert llama.wheel_for_this_machine(tools.parent) == str(Path.home() / "binding.whl")


@pytest.mark.parametrize("common", [False, True])
def test_the_compilation_leaves_out_unused_libraries(common: bool) -> None:
    """The tests of imatrix alone link against the common library."""
    _, setting = llama.build_settings(common=common)
    package, _, arguments = setting.partition(":cmake.args=")
    first, *hooks = arguments.split(";")
    assert (package, first) == ("llama-cpp-python", "-DLLAVA_BUILD=OFF")
    assert len(hooks) == (0 if common else 1)
    for hook in hooks:
        assert "LLAMA_BUILD_COMMON OFF" in Path(hook.partition("=")[2]).read_text(encoding="utf-8")
