"""Tests of uv: the one on PATH is used if it is new enough, else it is downloaded once and completely."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from startup import uv
from startup.console import StartError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its stand-in is a shell script")


def write_uv(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'uv {version} (a build)'\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def fetcher(ran: list[Sequence[str | Path]], version: str = "0.13.9") -> object:
    """Replaces pip's download."""

    def run(argv: Sequence[str | Path]) -> None:
        if argv[1:] == ["--version"]:
            return
        ran.append(argv)
        write_uv(Path(argv[-1]) / "bin" / "uv", version)

    return run


@pytest.mark.parametrize(
    ("version", "taken"), [("0.13.9", True), ("0.9.0", True), ("1.2.0", True), ("0.8.24", False), ("?", False)]
)
def test_uv_on_the_path_is_used_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    program = write_uv(tmp_path / "bin" / "uv", version)
    monkeypatch.setenv("PATH", str(program.parent))
    found = uv.find_or_fetch(tmp_path, fetcher([]))  # type: ignore[arg-type]
    assert found == (program if taken else tmp_path / "uv" / "bin" / "uv")


def test_uv_is_downloaded_once_and_checked_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    ran: list[Sequence[str | Path]] = []
    found = uv.find_or_fetch(tmp_path, fetcher(ran))  # type: ignore[arg-type]
    assert found == tmp_path / "uv" / "bin" / "uv"
    assert {"--require-hashes", "--only-binary"} <= set(map(str, ran[0]))
    assert uv.find_or_fetch(tmp_path, fetcher(ran)) == found  # type: ignore[arg-type]
    assert len(ran) == 1


def test_an_incomplete_download_of_uv_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (tmp_path / "uv.part" / "bin").mkdir(parents=True)
    broken = tmp_path / "uv" / "bin" / "uv"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"")
    ran: list[Sequence[str | Path]] = []
    assert uv.works(uv.find_or_fetch(tmp_path, fetcher(ran)))  # type: ignore[arg-type]
    assert len(ran) == 1
    assert not (tmp_path / "uv.part").exists()


def test_a_python_without_pip_and_venv_is_reported_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    bare.chmod(0o755)
    monkeypatch.setattr(uv.sys, "executable", str(bare))
    monkeypatch.setattr(uv.sys, "_base_executable", str(bare), raising=False)
    with pytest.raises(StartError, match="neither pip nor venv") as caught:
        uv.find_or_fetch(tmp_path, fetcher([]))  # type: ignore[arg-type]
    assert "python3-venv" in caught.value.fix
