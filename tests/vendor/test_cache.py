"""Tests that the cached tree is complete and as pinned, after interruption, damage or a race."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import vendor_llama_cpp.cache
from vendor_llama_cpp import VendorError, converter_tree
from vendor_llama_cpp.cache import ensure_tree
from vendor_llama_cpp.listener import Silent
from vendor_llama_cpp.pin import load_pin

from .conftest import FILES, PinnedArchive, honest


def contents(tree: Path) -> dict[str, bytes]:
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_a_cached_tree_needs_no_sdist(cache: Path, sdist: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    tree = ensure_tree(pin, Silent())
    sdist.unlink()
    assert tree == ensure_tree(pin, Silent())


@pytest.mark.parametrize("damage", ["changed", "truncated", "gone", "added", "linked", "file"])
def test_a_damaged_tree_is_found_and_unpacked_again(damage: str, cache: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    tree = ensure_tree(pin, Silent())
    victim = tree / "conversion" / "base.py"
    if damage == "changed":
        victim.write_bytes(b"evil\n")
    elif damage == "truncated":
        victim.write_bytes(b"")
    elif damage == "gone":
        victim.unlink()
    elif damage == "added":
        (tree / "torch.py").write_bytes(b"raise SystemExit('shadowed')")
    elif damage == "linked":
        original = victim.rename(tree.parent / "elsewhere.py")
        victim.symlink_to(original)
    else:
        tree.rename(tree.parent / "aside")
        tree.write_bytes(b"in the way")
    assert tree == ensure_tree(pin, Silent())
    assert contents(tree) == FILES


def test_byte_code_beside_the_modules_is_removed_without_a_download(
    cache: Path, sdist: Path, pinned: PinnedArchive
) -> None:
    """Someone ran the converter by hand: that must not cost a machine without network its converter."""
    pin = pinned(honest())
    tree = ensure_tree(pin, Silent())
    sdist.unlink()
    (tree / "conversion" / "__pycache__").mkdir()
    (tree / "conversion" / "__pycache__" / "base.cpython-311.pyc").write_bytes(b"forged")
    assert tree == ensure_tree(pin, Silent())
    assert contents(tree) == FILES


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_unpacking_leaves_no_tree(
    fault: BaseException, cache: Path, pinned: PinnedArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = pinned(honest())
    written: list[str] = []
    real = vendor_llama_cpp.cache.write_tree

    def cut_short(files: dict[str, bytes], destination: Path) -> None:
        real(dict(list(files.items())[:2]), destination)
        written.extend(contents(destination))
        raise fault

    monkeypatch.setattr(vendor_llama_cpp.cache, "write_tree", cut_short)
    with pytest.raises((VendorError, KeyboardInterrupt)) as caught:
        ensure_tree(pin, Silent())
    assert len(written) == 2
    assert list(cache.iterdir()) == []
    if isinstance(caught.value, VendorError):
        assert (caught.value.kind, caught.value.what) == ("disk", "the disk is full")


def test_the_leftovers_of_a_killed_process_are_ignored_and_later_removed(cache: Path, pinned: PinnedArchive) -> None:
    fresh, stale = cache / ".making-fresh", cache / ".making-stale"
    for leftover in (fresh, stale):
        (leftover / "tree").mkdir(parents=True)
        (leftover / "tree" / "LICENSE").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(stale, (two_days_ago, two_days_ago))
    tree = ensure_tree(pinned(honest()), Silent())
    assert {tree, fresh} == set(cache.iterdir())


def test_concurrent_processes_get_the_same_complete_tree(cache: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    trees: list[Path] = []
    threads = [threading.Thread(target=lambda: trees.append(ensure_tree(pin, Silent()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trees) == 8
    assert len(set(trees)) == 1
    assert contents(trees[0]) == FILES
    assert trees[:1] == list(cache.iterdir())


def test_a_cache_that_cannot_be_written_says_so(
    tmp_path: Path, pinned: PinnedArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(VendorError) as caught:
        ensure_tree(pinned(honest()), Silent())
    assert caught.value.kind == "disk"
    assert "AEGIS_CACHE_DIR" in caught.value.fix


def test_the_real_tree_has_the_converter_and_no_pickle() -> None:
    tree = converter_tree()
    pin = load_pin()
    assert (tree / "convert_hf_to_gguf.py").is_file()
    assert (tree / "LICENSE").is_file()
    assert (tree / "tools" / "imatrix" / "imatrix.cpp").is_file()
    assert b"LazyChunkedTensor" in b"".join(path.read_bytes() for path in tree.rglob("*.py"))
    assert {".py", ".cpp", ".h", ""} == {path.suffix for path in tree.rglob("*") if path.is_file()}
    assert pin.upstream_commit[:12] in tree.name


def test_the_command_prints_the_tree_and_nothing_else_on_stdout() -> None:
    run = [sys.executable, "-m", "vendor_llama_cpp"]
    source_root = Path(vendor_llama_cpp.__file__).parents[1]
    done = subprocess.run(run, cwd=source_root, capture_output=True, check=True)
    assert f"{converter_tree()}\n" == done.stdout.decode("utf-8").replace("\r\n", "\n")


def test_the_package_imports_no_module_of_aegis() -> None:
    probe = "import sys, vendor_llama_cpp; assert not any(m.split('.')[0] == 'aegis' for m in sys.modules)"
    source_root = Path(vendor_llama_cpp.__file__).parents[1]
    subprocess.run([sys.executable, "-c", probe], cwd=source_root, check=True)
