"""Tests that a hostile archive, even one with the pinned sha256, writes no file."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

import vendor_llama_cpp.unpack
from vendor_llama_cpp import VendorError
from vendor_llama_cpp.cache import ensure_tree
from vendor_llama_cpp.listener import Silent
from vendor_llama_cpp.pin import Pin

from .conftest import FILES, ROOT, Members, PinnedArchive, honest, member, pin_for

HOSTILE = {
    "traversal": member("llama-9/../../escaped", b"x"),
    "traversal in a wanted place": member(ROOT + "conversion/../../../../escaped.py", b"x"),
    "traversal with backslashes": member("llama-9\\..\\..\\escaped", b"x"),
    "absolute": member("/tmp/escaped", b"x"),
    "UNC": member("\\\\server\\share\\escaped", b"x"),
    "drive letter": member("C:/escaped", b"x"),
    "drive-relative": member("c:escaped", b"x"),
    "symbolic link": member(ROOT + "conversion/link.py", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "symbolic link elsewhere": member("llama-9/link", kind=tarfile.SYMTYPE, link="PKG-INFO"),
    "hard link": member(ROOT + "conversion/hard.py", kind=tarfile.LNKTYPE, link="llama-9/PKG-INFO"),
    "device": member(ROOT + "conversion/null.py", kind=tarfile.CHRTYPE),
    "pipe": member(ROOT + "conversion/pipe.py", kind=tarfile.FIFOTYPE),
    "alternate stream": member(ROOT + "conversion/base.py:evil.py", b"x"),
    "twice, but for case": member(ROOT + "conversion/BASE.py", b"x"),
    "hidden": member(ROOT + "conversion/.py", b"x"),
}


def refuse(pin: Pin, tmp_path: Path) -> VendorError:
    before = set(tmp_path.rglob("*"))
    with pytest.raises(VendorError) as caught:
        ensure_tree(pin, Silent())
    left = set(tmp_path.rglob("*")) - before
    assert {tmp_path / "cache", tmp_path / "cache" / "llama.cpp"} == left
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/escaped").exists()
    return caught.value


@pytest.mark.parametrize("evil", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_hostile_member_anywhere_is_refused(
    evil: Members, at_the_end: bool, cache: Path, pinned: PinnedArchive, tmp_path: Path
) -> None:
    members = honest() + evil if at_the_end else evil + honest()
    assert refuse(pinned(members), tmp_path).kind == "archive"


def test_a_sound_archive_gives_only_the_wanted_files(cache: Path, pinned: PinnedArchive) -> None:
    """The control of every test here: the same members without the hostile one unpack."""
    tree = ensure_tree(pinned(honest()), Silent())
    assert {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()} == FILES
    assert [tree] == list(cache.iterdir())


def test_one_more_file_than_pinned_is_refused(cache: Path, pinned: PinnedArchive, tmp_path: Path) -> None:
    pin = pinned(honest() + member(ROOT + "conversion/stranger.py", b"x"))
    assert refuse(pin, tmp_path).kind == "hash"


def test_a_bomb_among_the_unwanted_files_is_refused(
    cache: Path, sdist: Path, pinned: PinnedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vendor_llama_cpp.unpack, "MAX_ARCHIVE_BYTES", 1 << 20)
    pin = pinned(honest() + member("llama-9/zeros", bytes(8 << 20)))
    assert sdist.stat().st_size < 1 << 16
    assert "inflates" in refuse(pin, tmp_path).why


def test_a_bomb_among_the_wanted_files_is_refused(
    cache: Path, pinned: PinnedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vendor_llama_cpp.unpack, "MAX_TREE_BYTES", 1 << 20)
    pin = pinned(honest() + member(ROOT + "conversion/zeros.py", bytes(8 << 20)))
    assert "hold more" in refuse(pin, tmp_path).why


def test_an_archive_of_too_many_members_is_refused(
    cache: Path, pinned: PinnedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vendor_llama_cpp.unpack, "MAX_MEMBERS", 50)
    members = honest()
    for number in range(60):
        members += member(f"llama-9/{number}")
    assert "members" in refuse(pinned(members), tmp_path).why


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_refused(
    kept: float, cache: Path, sdist: Path, pinned: PinnedArchive, tmp_path: Path
) -> None:
    pinned(honest())
    data = sdist.read_bytes()
    sdist.write_bytes(data[: int(len(data) * kept)])
    # trusted by hash, so that it is the unpacking that has to notice; an empty archive holds no files at all
    assert refuse(pin_for(sdist), tmp_path).kind in {"archive", "hash"}


def test_a_file_that_is_not_an_archive_is_refused(cache: Path, sdist: Path, tmp_path: Path) -> None:
    sdist.parent.mkdir()
    for data in (b"plain text", gzip.compress(b"a" * 4096)):
        sdist.write_bytes(data)
        with pytest.raises(VendorError):
            ensure_tree(pin_for(sdist), Silent())
    assert list(cache.iterdir()) == []
