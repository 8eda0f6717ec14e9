"""Tests that llama.cpp's binding comes from a pinned wheel, or is compiled without unused libraries."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from startup import llama
from startup.console import StartError

from tests.tools.small_project import served

CONTENT = b"a wheel" * 1000


@pytest.fixture
def published(tmp_path: Path) -> Iterator[llama.Wheel]:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "binding.whl").write_bytes(CONTENT)
    with served(folder) as address:
        yield llama.Wheel(f"{address}/binding.whl", hashlib.sha256(CONTENT).hexdigest())


def fetch(wheel: llama.Wheel, folder: Path) -> Path | str:
    return llama.fetch(wheel, folder, lambda text: None, None)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "wanted"),
    [
        ("linux", "x86_64", "glibc", "manylinux2014_x86_64"),
        ("linux", "aarch64", "glibc", "manylinux2014_aarch64"),
        ("win32", "AMD64", "", "win_amd64"),
    ],
)
def test_a_platform_with_a_published_wheel_has_its_name(
    tools: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, libc: str, wanted: str
) -> None:
    monkeypatch.delenv(llama.VARIABLE, raising=False)
    assert llama.platform_tag(system, machine, libc) == wanted
    monkeypatch.setattr(llama, "platform_tag", lambda *_: wanted)
    wheel = llama.wheel_for_this_machine(tools.parent)
    assert wheel is not None
    assert wanted in wheel.name
    assert len(wheel.sha256) == 64


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [("linux", "x86_64", ""), ("darwin", "arm64", ""), ("win32", "ARM64", ""), ("linux", "riscv64", "glibc")],
)
def test_a_platform_without_a_published_wheel_compiles(
    tools: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, libc: str
) -> None:
    monkeypatch.delenv(llama.VARIABLE, raising=False)
    tag = llama.platform_tag(system, machine, libc)
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


def test_a_wheel_is_fetched_once(published: llama.Wheel, tmp_path: Path) -> None:
    path = fetch(published, tmp_path)
    assert isinstance(path, Path)
    assert path.read_bytes() == CONTENT
    gone = llama.Wheel(published.place.replace("127.0.0.1", "127.0.0.2"), published.sha256)
    assert fetch(gone, tmp_path) == path


@pytest.mark.parametrize("left", [b"", CONTENT[:99], b"something else"])
def test_an_incomplete_download_is_not_used(published: llama.Wheel, tmp_path: Path, left: bytes) -> None:
    for name in ("binding.whl", "binding.whl.part"):
        (tmp_path / name).write_bytes(left)
    path = fetch(published, tmp_path)
    assert isinstance(path, Path)
    assert path.read_bytes() == CONTENT


def test_another_file_is_refused_with_its_hash(published: llama.Wheel, tmp_path: Path) -> None:
    refused = fetch(llama.Wheel(published.place, "0" * 64), tmp_path)
    assert isinstance(refused, str)
    assert published.sha256 in refused
    assert not (tmp_path / "binding.whl").exists()


def test_an_address_that_does_not_answer_is_an_error_of_one_line(published: llama.Wheel, tmp_path: Path) -> None:
    missing = fetch(llama.Wheel(published.place + "x", "0" * 64), tmp_path)
    assert isinstance(missing, str)
    assert "not found" in missing
    assert "\n" not in missing


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
