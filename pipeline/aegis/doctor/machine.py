"""Probes of the machine: memory and WSL's share of it, disks, folder names and the console."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from pathlib import Path

from aegis.doctor.finding import WINDOWS, Finding, Name, environment_command, gigabytes
from aegis.messages import phrase

MIN_RAM_BYTES = 4e9
"""Merge and export need less than 1 GB; torch, the tokenizer and loading a base need the rest."""

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_LETTERS = "α 🔵🟡🟢 日本語"


def memory() -> list[Finding]:
    """Check the RAM that this process may use: WSL gets half of the machine by default, a container has its limit."""
    import psutil

    found = psutil.virtual_memory()
    total, available = int(found.total), int(found.available)
    limit = _container_limit()
    if limit is not None and limit < total:
        total, available = limit, min(available, limit)
    wsl = is_wsl()
    if wsl:
        key = "doctor.memory_wsl"
    elif limit is not None and limit == total:
        key = "doctor.memory_container"
    else:
        key = "doctor.memory"
    detail = phrase(key, free=gigabytes(available), total=gigabytes(total))
    if available >= MIN_RAM_BYTES:
        return [Finding("memory", "ok", detail)]
    return [Finding("memory", "warn", detail, phrase("doctor.raise_wsl") if wsl else phrase("doctor.close_programs"))]


def is_wsl() -> bool:
    """Whether this Linux runs inside Windows."""
    return "microsoft" in platform.uname().release.lower()


def _container_limit() -> int | None:
    for name in _CGROUP_LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # version 1 writes a huge number for "no limit"
            return int(text)
    return None


def disks() -> list[Finding]:
    """Check the free space where AEGIS writes.

    A 3.8 B base needs 7.6 GB for the download, 18 GB for merge and export, and 7.6 GB for verify.
    """
    from huggingface_hub import constants

    from aegis.runs import disk

    temporary = Path(tempfile.gettempdir())
    return [
        _disk("disk_base_models", Path(constants.HF_HUB_CACHE), 8e9, environment_command("HF_HOME", "FOLDER")),
        _disk("disk_cache", disk.cache_place(), 1e9, environment_command("AEGIS_CACHE_DIR", "FOLDER")),
        _disk("disk_runs", Path("artifacts").absolute(), 18e9, phrase("doctor.run_elsewhere")),
        _disk("disk_temporary", temporary, 8e9, environment_command("TEMP" if WINDOWS else "TMPDIR", "FOLDER")),
    ]


def _disk(name: Name, place: Path, wanted_bytes: float, cure: str) -> Finding:
    existing = place
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    detail = phrase("doctor.disk", free=gigabytes(free), place=place)
    try:
        # try to write: permission bits mean little on Windows and on network drives
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(name, "fail", phrase("doctor.not_writable", found=detail, error=error.strerror), cure)
    if free < wanted_bytes:
        return Finding(name, "warn", phrase("doctor.disk_short", found=detail, wanted=gigabytes(wanted_bytes)), cure)
    return Finding(name, "ok", detail)


def paths() -> list[Finding]:
    """Check for folder names outside ASCII, which some Windows programs cannot open, and for the encoding of names."""
    from aegis.runs import disk

    places = [Path.cwd(), disk.cache_place(), Path(tempfile.gettempdir()), Path(sys.prefix)]
    odd = sorted({str(place) for place in places if not str(place).isascii()})
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        detail = phrase("doctor.file_names", encoding=sys.getfilesystemencoding())
        return [Finding("paths", "warn", detail, environment_command("PYTHONUTF8", "1"))]
    if odd and WINDOWS:
        detail = phrase("doctor.not_ascii_on_windows", names=", ".join(odd))
        return [Finding("paths", "warn", detail, environment_command("AEGIS_CACHE_DIR", r"C:\aegis"))]
    detail = phrase("doctor.not_ascii", names=", ".join(odd)) if odd else phrase("doctor.plain_names")
    return [Finding("paths", "ok", detail)]


def console() -> list[Finding]:
    """Check that the console's encoding can show AEGIS's characters."""
    stream = sys.__stdout__  # while a progress bar is drawn, sys.stdout is the bar's
    encoding = stream.encoding if stream else "ascii"
    try:
        _LETTERS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        cure = "chcp 65001 && set PYTHONUTF8=1" if WINDOWS else environment_command("PYTHONUTF8", "1")
        return [Finding("console", "warn", phrase("doctor.missing_letters", encoding=encoding), cure)]
    key = "doctor.terminal" if stream and stream.isatty() else "doctor.no_terminal"
    return [Finding("console", "ok", phrase(key, encoding=encoding))]
