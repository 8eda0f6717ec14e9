"""Which installed packages are whole: a killed uv leaves some that it will later take for installed."""

from __future__ import annotations

import base64
import csv
import hashlib
import shutil
from pathlib import Path

from startup.console import StartError
from startup.language import either


def broken(site_packages: Path, *, hashes: bool = False) -> list[Path]:
    """The `.dist-info` folders of packages that are not whole; with `hashes`, every byte is looked at.

    uv looks at METADATA only, and links it at some point between the other files; so after a SIGKILL it
    counts a package without its modules among the installed ones.
    """
    return [folder for folder in sorted(site_packages.glob("*.dist-info")) if not _is_whole(folder, hashes)]


def repair(site_packages: Path, *, hashes: bool = False) -> list[str]:
    """Take away what a killed uv left half done, so that the next one installs it anew; return the names.

    Only the `.dist-info` of a broken package is removed: the other files are overwritten by the reinstallation.

    Raises:
        StartError: something cannot be removed.
    """
    for leftover in site_packages.glob(
        "~*"
    ):  # pip's name, for whoever uses pip here, of what it was about to uninstall
        _remove(leftover)
    folders = broken(site_packages, hashes=hashes)
    for folder in folders:
        _remove(folder)
    return [folder.name.removesuffix(".dist-info") for folder in folders]


def _is_whole(folder: Path, hashes: bool) -> bool:
    """Whether every file that RECORD gives a size for is there with that size, and with its hash if `hashes`.

    importlib.metadata would not do: from Python 3.12 on it leaves missing files out of its list.
    """
    # uv and pip write INSTALLER after all of a wheel's own files: without it the installation was cut short
    if not all((folder / name).is_file() for name in ("METADATA", "RECORD", "INSTALLER")):
        return False
    with (folder / "RECORD").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    for row in rows:
        if len(row) != 3 or not row[2]:  # no size: compiled Python files, and RECORD itself
            continue
        path = folder.parent / row[0]
        try:
            if path.stat().st_size != int(row[2]) or (hashes and not _has_hash(path, row[1])):
                return False
        except OSError:
            return False
    return bool(rows)


def _has_hash(path: Path, recorded: str) -> bool:
    """Whether the file has the hash that RECORD gives, as "sha256=" and base64 without its padding."""
    kind, _, wanted = recorded.partition("=")
    if kind not in hashlib.algorithms_guaranteed:
        return True
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).digest()
    return base64.urlsafe_b64encode(found).decode().rstrip("=") == wanted


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise StartError(
            either(
                f"A half-installed package could not be removed: {error}",
                f"途中までインストールされたパッケージを削除できませんでした: {error}",
            ),
            either(
                "Close programs that use .venv, or delete the folder .venv, and start again.",
                ".venv を使っているプログラムを閉じるか .venv フォルダを削除して、もう一度始めてください。",
            ),
        ) from error
