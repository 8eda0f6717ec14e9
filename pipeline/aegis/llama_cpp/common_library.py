"""Finds or compiles llama.cpp's libraries with llama-common, which its tools are linked against.

The set-up installs the binding without llama-common: only imatrix needs it, and it takes longer to compile than the
rest. If the installed binding does not have it, pip compiles the pinned release again, with it, into the cache.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aegis.errors import EnvironmentFault
from aegis.messages.safe import shell_program
from aegis.runs import disk
from aegis.runs.disk import at_home
from aegis.runs.manifest import file_sha256
from aegis.vendored import vendor_llama_cpp

LIBRARIES = ("llama-common", "llama", "ggml", "ggml-base")
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
TOOLS = "llama.cpp-tools"
"""The folder in the cache for everything that is compiled."""
_BINDING = "llama-cpp-python"


@dataclass(frozen=True)
class Libraries:
    """The folders of llama.cpp's libraries and headers."""

    libraries: Path
    headers: Path

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each library."""
        return {name: file_sha256(self.libraries / f"lib{name}{SUFFIX}") for name in LIBRARIES}


def find_libraries() -> Libraries | None:
    """Return the installed binding's libraries, else those that were compiled into the cache, else None.

    Raises:
        EnvironmentFault: the binding is missing or has another version, or this is Windows.
    """
    if sys.platform == "win32":
        raise EnvironmentFault("building.windows")
    version = vendor_llama_cpp.load_pin().version
    try:
        distribution = metadata.distribution(_BINDING)
    except metadata.PackageNotFoundError:
        raise EnvironmentFault("building.no_binding", binding=_BINDING, cure=_reinstall(version)) from None
    if distribution.version != version:
        raise EnvironmentFault(
            "building.other_version",
            binding=_BINDING,
            installed=distribution.version,
            needed=version,
            cure=_reinstall(version),
        )
    compiled = next(iter(metadata.distributions(name=_BINDING, path=[str(_place())])), None)
    return _libraries_of(distribution) or (_libraries_of(compiled) if compiled is not None else None)


def compile_libraries(run: Callable[[list[str], dict[str, str]], None]) -> Libraries:
    """Compile the pinned release with llama-common, and put it into the cache by one rename.

    Args:
        run: runs a command in an environment, and raises if it fails.

    Raises:
        EnvironmentFault: the compiled release does not have the library.
    """
    pin, place = vendor_llama_cpp.load_pin(), _place()
    part = place.with_name(place.name + ".part")
    for leftover in (part, place):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    requirements = part / "requirements.txt"
    given = os.environ.get("AEGIS_LLAMA_SDIST")
    source = str(at_home(given).absolute()) if given else f"{pin.distribution}=={pin.version}"
    requirements.write_text(f"{source} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    # fmt: off
    run(
        [
            sys.executable, "-P", "-m", "pip", "install", "-v", "--no-input", "--disable-pip-version-check",
            "--no-deps", "--no-binary", _BINDING, "--require-hashes", "-r", str(requirements), "--target", str(part),
        ],
        {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)},
    )
    # fmt: on
    part.rename(place)
    found = find_libraries()
    if found is None:
        raise EnvironmentFault("building.no_common_library", place=place)
    return found


def _place() -> Path:
    """Return the folder in the cache for the release with llama-common."""
    pin = vendor_llama_cpp.load_pin()
    return disk.cache_place().absolute() / TOOLS / f"{pin.distribution}-{pin.sha256[:12]}"


def _reinstall(version: str) -> str:
    again = f"{shell_program(sys.executable)} -m pip install --force-reinstall --no-deps --no-binary {_BINDING} "
    return f"{again}{_BINDING}=={version}"


def _libraries_of(distribution: metadata.Distribution) -> Libraries | None:
    places = {file.name: Path(str(file.locate())).parent for file in distribution.files or ()}
    libraries, headers = places.get(f"libllama-common{SUFFIX}"), places.get("llama.h")
    return None if libraries is None or headers is None else Libraries(libraries, headers)
