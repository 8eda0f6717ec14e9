"""Tests of the choice of torch's build, and of the hashes that then hold."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from startup import torch_build


@pytest.fixture(autouse=True)
def no_choice_of_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_TORCH_BACKEND", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("platform", "driver", "wanted"),
    [
        ("linux", True, "auto"),
        ("linux", False, "cpu"),
        ("win32", True, "auto"),
        ("win32", False, None),
        ("darwin", False, None),
    ],
)
def test_the_build_of_torch_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch, platform: str, driver: bool, wanted: str | None
) -> None:
    monkeypatch.setattr(torch_build.sys, "platform", platform)
    monkeypatch.setattr(torch_build, "WINDOWS", platform == "win32")
    monkeypatch.setattr(torch_build, "has_nvidia_driver", lambda: driver)
    assert torch_build.backend() == wanted


@pytest.mark.parametrize("name", ["UV_TORCH_BACKEND", "UV_INDEX", "UV_FIND_LINKS"])
def test_the_callers_own_choice_or_places_are_left_to_uv(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An extra index or a folder may have another build of torch; a mirror has the public files with their hashes."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mirror.example/simple")
    assert not torch_build.from_own_places()
    monkeypatch.setenv(name, "cu128")
    assert torch_build.from_own_places()
    assert torch_build.backend() is None


def test_windows_driver_is_found_by_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_build, "WINDOWS", True)
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    assert not torch_build.has_nvidia_driver()
    library = tmp_path / "System32" / "nvcuda.dll"
    library.parent.mkdir()
    library.touch()
    assert torch_build.has_nvidia_driver()


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", True),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n", False),
        (None, False),
    ],
)
def test_a_build_without_cuda_is_known(tmp_path: Path, text: str | None, cpu: bool) -> None:
    if text is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(text, encoding="utf-8")
    assert torch_build.is_cpu_build(tmp_path) == cpu


def test_another_build_has_the_same_version_and_no_hashes(tools: Path) -> None:
    """So do all packages that only the public build needs; every other line is unchanged."""
    text = (tools / "constraints.txt").read_text(encoding="utf-8")
    before, after = torch_build.blocks(text), torch_build.blocks(torch_build.without_build(text))
    changed = set(before) - set(after)
    assert {Requirement(block.split(" \\")[0]).name for block in changed} == {
        "torch",
        "triton",
        *(
            name
            for block in before
            if (name := block.split("==")[0]).startswith(("nvidia-", "cuda-")) and "-ml" not in name
        ),
    }
    torch = next(block for block in after if block.startswith("torch=="))
    assert torch.count("\n") == 1
    assert "--hash" not in torch
    assert all("--hash" in block for block in after if block != torch)
