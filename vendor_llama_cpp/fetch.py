"""Get the pinned sdist and prove that it is the pinned one, before anything looks inside.

pip does the download, in a process of its own, so that the user's own index, proxy and certificates hold. It
gets the hash too and compares it before it unpacks a file or runs a line of the sdist's build backend; the
check is repeated here on the open file that is then unpacked, so that nobody can swap it in between.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vendor_llama_cpp.errors import VendorError
from vendor_llama_cpp.pin import Pin

SDIST_VARIABLE = "AEGIS_LLAMA_SDIST"

Say = Callable[[str], None]


@contextmanager
def verified_sdist(pin: Pin, workspace: Path, say: Say) -> Iterator[BinaryIO]:
    """Open the sdist, positioned at its start, after its sha256 was found to be the pinned one.

    Args:
        pin: what to fetch.
        workspace: an empty directory for the download; the caller removes it.
        say: told each step, in words for a person.

    Raises:
        VendorError: "fetch" if it cannot be had, "hash" if it is something else.
    """
    given = os.environ.get(SDIST_VARIABLE)
    path = Path(given).expanduser() if given else _download(pin, workspace, say)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise VendorError(
            f"Cannot read the llama.cpp source archive {path}",
            why=f"{error.strerror or error}.",
            fix=f"Point {SDIST_VARIABLE} at {pin.sdist}, or unset it to download the file.",
            kind="fetch",
        ) from error
    with stream:
        say(f"Checking {path.name}")
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != pin.sha256:
            raise VendorError(
                f"{path} is not the pinned {pin.sdist}",
                why=f"Its sha256 is {found} ({stream.tell()} bytes); "
                f"wanted {pin.sha256} ({pin.size_bytes} bytes). Nothing was unpacked.",
                fix=f"Get {pin.distribution} {pin.version}'s source archive from a place you trust"
                + (f" and point {SDIST_VARIABLE} at it." if given else " and try again."),
                kind="hash",
            )
        stream.seek(0)
        yield stream


def _download(pin: Pin, workspace: Path, say: Say) -> Path:
    say(f"Downloading {pin.sdist} with pip ({pin.size_bytes / 1e6:.0f} MB)")
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
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command,
        cwd=workspace,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    path = workspace / pin.sdist
    if done.returncode == 0 and path.is_file():
        return path
    output = done.stdout.decode("utf-8", errors="replace").strip()
    last_lines = "\n".join(output.splitlines()[-10:])
    if "DO NOT MATCH THE HASHES" in output:
        raise VendorError(
            f"The index offers another {pin.sdist} than the pinned one",
            why=f"pip compared its sha256 and refused it; nothing was unpacked.\n{last_lines}",
            fix=f"Check your package index, or point {SDIST_VARIABLE} at the genuine file.",
            kind="hash",
        )
    raise VendorError(
        f"pip could not download {pin.sdist}",
        why=last_lines or f"pip ended with code {done.returncode} and said nothing.",
        fix=f"Check the network and pip's settings, then try again; or copy {pin.sdist} here from another "
        f"machine and point {SDIST_VARIABLE} at it.",
        kind="fetch",
    )
