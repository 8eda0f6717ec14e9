"""Probes of the installation: Python, the set-up, and all needed packages with their versions and files."""

from __future__ import annotations

import csv
import os
import platform
import re
import struct
import sys
from importlib import metadata
from pathlib import Path

from aegis.doctor.cures import install, requirements_of_ours, set_up_again
from aegis.doctor.finding import WINDOWS, Finding
from aegis.messages import phrase

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)


def python() -> list[Finding]:
    """Check Python's version, and that it is a 64-bit one."""
    bits = 8 * struct.calcsize("P")
    detail = phrase("doctor.python", version=platform.python_version(), bits=bits, executable=sys.executable)
    again = r"py -3.13 tools\start.py setup" if WINDOWS else "python3.13 tools/start.py setup"
    if sys.version_info < OLDEST_PYTHON or struct.calcsize("P") < 8:
        oldest = _dotted(OLDEST_PYTHON)
        return [Finding("python", "fail", phrase("doctor.python_too_old", found=detail, oldest=oldest), again)]
    if sys.version_info[:2] > NEWEST_PYTHON:
        oldest, newest = _dotted(OLDEST_PYTHON), _dotted(NEWEST_PYTHON)
        text = phrase("doctor.python_too_new", found=detail, oldest=oldest, newest=newest)
        return [Finding("python", "warn", text, again)]
    return [Finding("python", "ok", detail)]


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def set_up() -> list[Finding]:
    """Check whether tools/start.py finished the current environment; it writes stamp.json last."""
    records = Path(sys.prefix) / "start"
    if not records.is_dir():
        return [Finding("set_up", "ok", phrase("doctor.own_environment", prefix=sys.prefix))]
    if (records / "stamp.json").is_file():
        return [Finding("set_up", "ok", phrase("doctor.set_up_finished", prefix=sys.prefix))]
    unfinished = phrase("doctor.set_up_unfinished", prefix=sys.prefix, log=records / "setup.log")
    return [Finding("set_up", "fail", unfinished, set_up_again())]


def packages() -> list[Finding]:
    """Check that every direct or indirect requirement is installed, complete, and in a suitable version."""
    try:
        missing, misfits, broken, count = _survey()
    except ModuleNotFoundError:  # `packaging` itself is missing; without it, only names can be checked
        missing, misfits, broken, count = _absent(), {}, [], 0
    problems = [
        phrase(key, names=", ".join(names))
        for key, names in (
            ("doctor.missing", missing),
            ("doctor.not_whole", broken),
            ("doctor.other_version", misfits.values()),
        )
        if names
    ]
    if not problems:
        return [Finding("packages", "ok", phrase("doctor.packages", count=count))]
    # an installer considers a package without its files installed, so it must reinstall
    cure = install(*broken, again=True) if broken else install(*missing, *misfits)
    return [Finding("packages", "fail", "; ".join(problems), cure)]


def _absent() -> list[str]:
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in ["packaging", *requirements_of_ours()]]
    installed = {re.sub(r"[-_.]+", "-", found.name).lower() for found in metadata.distributions() if found.name}
    return sorted(name for name in names if name.lower() not in installed)


def _survey() -> tuple[list[str], dict[str, str], list[str], int]:
    """Return the missing names, those of another version with a text, the incomplete ones, and the number of checked
    packages."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    missing: list[str] = []
    misfits: dict[str, str] = {}
    broken: list[str] = []
    seen: dict[str, set[str]] = {}
    todo = [Requirement(text) for text in requirements_of_ours()]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        first = name not in seen
        known = seen.setdefault(name, set())
        if not first and wanted.extras <= known:
            continue
        known |= wanted.extras
        try:
            found = metadata.distribution(wanted.name)
            version = found.version
        except (metadata.PackageNotFoundError, KeyError):
            missing.append(name)
            continue
        if first and not _is_whole(found):
            broken.append(name)
        if first and not wanted.specifier.contains(version, prereleases=True):
            misfits[name] = phrase("doctor.misfit", name=name, version=version, wanted=wanted.specifier)
        for text in found.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *known)):
                todo.append(needed)
    return sorted(missing), dict(sorted(misfits.items())), sorted(broken), len(seen)


def _is_whole(found: metadata.Distribution) -> bool:
    """Whether every file that the installer recorded exists with its recorded size.

    A killed pip leaves packages that have their metadata but not their files.
    """
    record = found.read_text("RECORD")
    if record is None:
        return found.read_text("INSTALLER") is not None  # conda and Linux distributions have no RECORD
    root = str(found.locate_file(""))
    for row in csv.reader(record.splitlines()):
        # bytecode and scripts are made on this machine; an entry without a size cannot be checked
        if len(row) != 3 or not row[2] or "__pycache__" in row[0] or row[0].startswith(".."):
            continue
        try:
            size = os.stat(os.path.join(root, row[0])).st_size  # noqa: PTH116, PTH118 (25,000 files)
        except OSError:
            return False
        if size != int(row[2]):
            return False
    return True
