"""From the end of a failed log to what a person can do about it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from startup.preflight import compiler_packages

TAIL_BYTES = 64 * 1024
TAIL_LINES = 20
_DETAIL_BYTES = 128 * 1024  # one long compiler warning takes tens of kilobytes

_COMPILED = re.compile(r"^\s*\[\s*(\d+)/(\d+)\]", re.MULTILINE)
_PIP_AT = re.compile(
    r"^\s*(Collecting|Downloading|Building wheel for|Installing collected packages|Obtaining)"
    r"\b[: ]*(\S*)",
    re.MULTILINE,
)

# The first that matches is shown, so the specific ones stand first.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|not enough space on the disk",
        "The disk is full: free some space and start again.",
    ),
    (
        r"Killed signal|out of memory|cannot allocate memory|MemoryError|C1060",
        "Memory ran out: close other programs, set CMAKE_BUILD_PARALLEL_LEVEL=1, and start again.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "A certificate was not accepted (a company proxy?): set PIP_CERT to its certificate file.",
    ),
    (
        r"Name or service not known|name resolution|getaddrinfo failed|Network is unreachable"
        r"|NewConnectionError|ReadTimeout|Read timed out|ConnectionReset|ProxyError|Connection refused",
        "The network or the package index did not answer: check the connection or pip's proxy settings.",
    ),
    (
        r"Permission denied|Access is denied|WinError (5|32)\b",
        "A file could not be written: close programs that use .venv (editors, terminals).",
    ),
    (
        r"CMAKE_C(XX)?_COMPILER|compiler identification is unknown|nmake",
        "The compiler was not usable. It comes with:\n{compiler}",
    ),
    (
        r"CMake Error|ninja: build stopped|Failed building wheel for llama",
        "llama-cpp-python did not compile; the log has the first error. A recent compiler helps:\n{compiler}",
    ),
    (
        r"No matching distribution found|Could not find a version",
        "pip found no package for Python {python} on this machine. Python 3.11 to 3.13 are the ones to try.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        "pyproject.toml and tools/constraints.txt disagree: run `python tools/start.py lock`.",
    ),
)


def _read_end(log: Path, size: int) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - size))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def tail(log: Path) -> str:
    """The last 20 lines of the log."""
    return "\n".join(_read_end(log, TAIL_BYTES).splitlines()[-TAIL_LINES:])


def last_line(log: Path) -> str:
    """What the log says last."""
    return next(iter(tail(log).splitlines()[-1:]), "").strip()


def cause(log: Path) -> str:
    """What to do about the failure the log ends with, or a general way on."""
    text = _read_end(log, TAIL_BYTES)
    for pattern, advice in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            return advice.format(compiler=compiler_packages(), python=version)
    return "Start again: what is done is kept. If it fails the same way, the whole log says more."


def where_pip_is(log: Path) -> str:
    """One phrase for the sign of life, from the end of a running pip's log."""
    text = _read_end(log, _DETAIL_BYTES)
    compiled = list(_COMPILED.finditer(text))
    steps = list(_PIP_AT.finditer(text))
    if compiled and (not steps or compiled[-1].start() > steps[-1].start()):
        return f"compiling llama.cpp, {compiled[-1][1]} of {compiled[-1][2]} files"
    if not steps:
        return "pip is at work"
    verb, name = steps[-1].groups()
    return verb.lower() if verb.startswith("Installing") else f"{verb.lower()} {name}"
