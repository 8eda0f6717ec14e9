"""llama.cpp: the binding's own prebuilt wheel where there is one for this machine, else what its compilation needs.

pin.toml names the wheels that the binding's project publishes, each with its sha256; a file with another hash is
refused. AEGIS_LLAMA_WHEEL names another one, as a path or an address followed by #sha256=...; "none" means compile.
"""

from __future__ import annotations

import hashlib
import os
import platform
import ssl
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from startup.console import StartError
from startup.language import either

VARIABLE = "AEGIS_LLAMA_WHEEL"
LEAN = Path(__file__).with_name("lean.cmake")
_SECONDS = 30
_BLOCK = 256 * 1024


class Wheel(NamedTuple):
    """Where a wheel is, and the sha256 it must have ("" for a file of the user's own)."""

    place: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.place.replace("\\", "/").rpartition("/")[2]


def wheel_for_this_machine(root: Path) -> Wheel | None:
    """The wheel to take: the one AEGIS_LLAMA_WHEEL names, else the published one for this platform, if any.

    Raises:
        StartError: AEGIS_LLAMA_WHEEL names an address without a hash.
    """
    given = os.environ.get(VARIABLE, "")
    if given.lower() == "none":
        return None
    if given:
        place, _, sha256 = given.partition("#sha256=")
        if "://" in place and len(sha256) != 64:
            raise StartError(
                either(
                    f"{VARIABLE} is an address without a hash: {given}",
                    f"{VARIABLE} のアドレスにハッシュがありません: {given}",
                ),
                either(
                    "Add #sha256= and the wheel's sha256 to it.",
                    "末尾に #sha256= と wheel の sha256 を付けてください。",
                ),
            )
        return Wheel(place, sha256)
    published = tomllib.loads((root / "vendor_llama_cpp" / "pin.toml").read_text(encoding="utf-8"))["wheels"]
    tag = platform_tag(sys.platform, platform.machine(), platform.libc_ver()[0])
    return next((Wheel(published["at"] + name, sha) for name, sha in published["sha256"].items() if tag in name), None)


def platform_tag(system: str, machine: str, libc: str) -> str:
    """What the name of a wheel for this platform has in it; a text that no name has if there is none."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    if system == "win32":
        return "win_amd64" if machine == "x86_64" else "win_arm64"
    if system == "linux" and libc == "glibc":
        return f"manylinux2014_{machine}"
    return f"{system}-{machine}"


def fetch(wheel: Wheel, folder: Path, tick: Callable[[str], None], certificates: str | None) -> Path | str:
    """The wheel's file, its hash checked, in `folder`; or one line that says why it is not to be had.

    A download that is interrupted leaves a `.part` file, which the next one replaces.
    """
    try:
        if "://" not in wheel.place:
            path = Path(wheel.place).expanduser().absolute()
            found = _sha256(path)
        else:
            path = folder / wheel.name
            found = _sha256(path) if path.is_file() else ""
            if found != wheel.sha256:
                part = path.with_name(path.name + ".part")
                _download(wheel.place, part, tick, certificates)
                found = _sha256(part)
                if found == wheel.sha256:
                    part.replace(path)
    except OSError as error:  # urllib's errors are OSErrors too
        return f"{wheel.name}: {getattr(error, 'reason', None) or error}"
    if wheel.sha256 and found != wheel.sha256:
        return either(
            f"{wheel.name} was refused: its sha256 is {found}, wanted {wheel.sha256}",
            f"{wheel.name} を拒否しました: sha256 が {found} です（期待値 {wheel.sha256}）",
        )
    return path


def _download(address: str, part: Path, tick: Callable[[str], None], certificates: str | None) -> None:
    context = ssl.create_default_context(cafile=certificates)
    come = 0
    # the address is the pin's or the user's own
    with urllib.request.urlopen(address, timeout=_SECONDS, context=context) as answer, part.open("wb") as sink:  # noqa: S310
        total = int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(_BLOCK):
            come += len(block)
            sink.write(block)
            tick(f"{come / 1e6:.0f} / {total / 1e6:.0f} MB" if total else f"{come / 1e6:.0f} MB")
    if total and come != total:
        raise OSError(either("the download was cut short", "ダウンロードが途中で切れました"))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def build_settings(*, common: bool) -> list[str]:
    """uv's options for the compilation: the libraries that the binding loads and no more. CMAKE_ARGS adds to them.

    They are options, not variables, because uv keeps what it compiled by its options.

    Args:
        common: with llama.cpp's common library, which the tests of imatrix link against.
    """
    arguments = ["-DLLAVA_BUILD=OFF"]
    if not common:
        arguments.append("-DCMAKE_PROJECT_llama.cpp_INCLUDE=" + str(LEAN).replace("\\", "/"))
    return ["--config-settings-package", f"llama-cpp-python:cmake.args={';'.join(arguments)}"]


def has_common(site_packages: Path) -> bool:
    """Whether the installed binding has llama.cpp's common library."""
    return any((site_packages / "lib").glob("libllama-common.*"))
