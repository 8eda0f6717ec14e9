"""llama.cpp: the binding's own prebuilt wheel where there is one for this machine, else what its compilation needs.

pin.toml names the wheels that the binding's project publishes, each with its sha256; uv refuses a file with another
hash. AEGIS_LLAMA_WHEEL names another one, as a path or an address followed by #sha256=...; "none" means compile.
"""

from __future__ import annotations

import os
import platform
import sys
import tomllib
from pathlib import Path

from startup.console import StartError
from startup.language import either

VARIABLE = "AEGIS_LLAMA_WHEEL"
LEAN = Path(__file__).with_name("lean.cmake")


def wheel_for_this_machine(root: Path) -> str | None:
    """What uv is to install: what AEGIS_LLAMA_WHEEL names, else the published wheel for this platform, if any.

    Raises:
        StartError: AEGIS_LLAMA_WHEEL names an address without a hash.
    """
    given = os.environ.get(VARIABLE, "")
    if given.lower() == "none":
        return None
    if "://" in given and len(given.partition("#sha256=")[2]) != 64:
        raise StartError(
            either(
                f"{VARIABLE} is an address without a hash: {given}",
                f"{VARIABLE} のアドレスにハッシュがありません: {given}",
            ),
            either("Add #sha256= and the wheel's sha256.", "末尾に #sha256= と wheel の sha256 を付けてください。"),
        )
    if given:
        return given if "://" in given else str(Path(given).expanduser().absolute())
    published = tomllib.loads((root / "vendor_llama_cpp" / "pin.toml").read_text(encoding="utf-8"))["wheels"]
    tag = platform_tag(sys.platform, platform.machine())
    return next(
        (f"{published['at']}{name}#sha256={sha}" for name, sha in published["sha256"].items() if tag in name), None
    )


def platform_tag(system: str, machine: str) -> str:
    """What the name of a wheel for this platform has in it, if there is one; whether it fits exactly, uv looks."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    return "win_amd64" if (system, machine) == ("win32", "x86_64") else f"many{system}2014_{machine}"


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
