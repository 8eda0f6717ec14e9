"""Get the pinned sdist and prove that it is the pinned one, before anything looks inside.

pip does the download, in a process of its own, so that the user's own index, proxy and certificates hold. It
gets the hash too and compares it before it unpacks a file or runs a line of the sdist's build backend; the
check is repeated here on the open file that is then unpacked, so that nobody can swap it in between.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import VendorError
from .listener import Listener
from .pin import Pin

SDIST_VARIABLE = "AEGIS_LLAMA_SDIST"
_LOOK_SECONDS = 0.2


@contextmanager
def verified_sdist(pin: Pin, workspace: Path, listener: Listener) -> Iterator[BinaryIO]:
    """Open the sdist, positioned at its start, after its sha256 was found to be the pinned one.

    Args:
        pin: what to fetch.
        workspace: an empty directory for the download; the caller removes it.
        listener: called at each step, and how much of the file has come.

    Raises:
        VendorError: "fetch" if it is not available, "hash" if it is something else.
    """
    given = os.environ.get(SDIST_VARIABLE)
    path = Path(os.path.expanduser(given)) if given else _download(pin, workspace, listener)  # noqa: PTH111
    try:
        stream = path.open("rb")
    except OSError as error:
        raise VendorError("fetch.unreadable", path=path, error=error.strerror or error, sdist=pin.sdist) from error
    with stream:
        listener.step("check", f"Checking {path.name}")
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != pin.sha256:
            raise VendorError(
                "hash.given" if given else "hash.downloaded",
                path=path,
                sdist=pin.sdist,
                found=found,
                found_bytes=stream.tell(),
                wanted=pin.sha256,
                wanted_bytes=pin.size_bytes,
                distribution=pin.distribution,
                version=pin.version,
            )
        stream.seek(0)
        yield stream


def _download(pin: Pin, workspace: Path, listener: Listener) -> Path:
    listener.step("download", f"Downloading {pin.sdist} with pip ({pin.size_bytes / 1e6:.0f} MB)")
    requirements = workspace / "requirements.txt"
    requirement = f"{pin.distribution}=={pin.version} --hash=sha256:{pin.sha256}\n"
    requirements.write_text(requirement, encoding="utf-8")
    # fmt: off
    command = [
        sys.executable, "-P", "-m", "pip", "download",
        "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
        "--no-deps", "--no-binary", pin.distribution, "--require-hashes",
        "--requirement", str(requirements), "--dest", str(workspace),
    ]
    # fmt: on
    log, path = workspace / "pip.log", workspace / pin.sdist
    with log.open("wb") as output_file:
        code = _watched(command, workspace, output_file, pin, listener)
    if code == 0 and path.is_file():
        return path
    output = log.read_text(encoding="utf-8", errors="replace").strip()
    # pip's words as they are, set apart by a bar: what is under it is in no language of ours
    last_lines = "\n".join(f"| {line}" for line in output.splitlines()[-10:] or ["-"])
    if "No module named pip" in output:
        # a word of a command that the reader copies; PowerShell takes single quotes as shlex writes them for a path
        raise VendorError("fetch.no_pip", sdist=pin.sdist, python=shlex.quote(sys.executable))
    if "DO NOT MATCH THE HASHES" in output:
        raise VendorError("hash.index", sdist=pin.sdist, output=last_lines)
    raise VendorError("fetch.pip", sdist=pin.sdist, exit_code=code, output=last_lines)


def _watched(command: list[str], workspace: Path, output: BinaryIO, pin: Pin, listener: Listener) -> int:
    """Run pip to its end and return its exit code, telling how the file that it writes grows.

    Its own words about that would do, but that pips before 24.1 have none for programs.
    """
    # Windows' own folder has the shorter path; elsewhere, what a killed pip leaves goes with the workspace
    scratch = Path(tempfile.gettempdir()) if os.name == "nt" else workspace
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8", "TMPDIR": str(scratch)}
    strangers = set(_arriving(scratch, pin))
    told = 0
    with subprocess.Popen(
        command, cwd=workspace, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    ) as pip:
        try:
            while True:
                try:
                    code: int | None = pip.wait(_LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    code = None
                ours = [size for path, size in _arriving(scratch, pin).items() if path not in strangers]
                come = pin.size_bytes if code == 0 else min(max(ours, default=0), pin.size_bytes)
                if come > told:
                    listener.fetched(come - told)
                    told = come
                if code is not None:
                    return code
        except BaseException:
            pip.kill()
            raise


def _arriving(scratch: Path, pin: Pin) -> dict[Path, int]:
    """Where pip is downloading the file to, and how much there is of it."""
    found = {}
    for path in scratch.glob(f"pip-unpack-*/{pin.sdist}"):
        with suppress(OSError):  # it has just been moved to where it belongs
            found[path] = path.stat().st_size
    return found
