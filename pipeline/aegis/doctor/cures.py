"""The command that mends an installation: it depends on how this one was made."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Literal

from aegis.doctor.finding import CHECKOUT, WINDOWS
from aegis.messages.safe import shell_program, shell_word

DISTRIBUTION = "aegis-soul"

How = Literal["start.py", "uv tool", "uvx", "uv", "pip"]
"""Made by tools/start.py, `uv tool install`, `uvx`, `uv venv`, or by venv or pipx, whose installer is pip."""


def how_installed() -> How:
    """How the environment that runs this was made, by what its maker leaves in it."""
    prefix = Path(sys.prefix)
    if (prefix / "start").is_dir():
        return "start.py"
    if (prefix / "uv-receipt.toml").is_file():
        return "uv tool"
    if prefix.parent.name.startswith("archive-v"):  # uv's cache
        return "uvx"
    try:
        made = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "pip"
    return "uv" if re.search(r"^uv\s*=", made, re.MULTILINE) else "pip"


def set_up_again() -> str:
    """The command that brings the installation to what it should be."""
    how = how_installed()
    if how == "start.py" or (how in ("uv", "pip") and _is_checkout()):
        return r"py tools\start.py setup" if WINDOWS else "python3 tools/start.py setup"
    exactly = f"{DISTRIBUTION}=={_version()}" if _version() else DISTRIBUTION
    if how == "uv tool":
        return f"uv tool install --reinstall {exactly}"
    if how == "uvx":
        return f"uvx --refresh {exactly}"
    return install(exactly, again=True)


def install(*requirements: str, again: bool = False) -> str:
    """The command that installs `requirements`, within the bounds that this program has for them.

    Where the environment is its maker's alone, the command is the maker's, which installs all that is needed.

    Args:
        requirements: names, or names with a version.
        again: even where they are there: their files, without what they need.
    """
    how = how_installed()
    if how in ("start.py", "uv tool", "uvx"):
        return set_up_again()
    words = [shell_word(bounded(word)) for word in requirements]
    if how == "uv":
        flags = [f"--reinstall-package {_name(word)}" for word in requirements] + ["--no-deps"] if again else []
        return " ".join(["uv", "pip", "install", "--python", shell_word(sys.executable), *flags, *words])
    return pip("install", *(["--ignore-installed", "--no-deps"] if again else []), *words)


def install_torch_for_card() -> str:
    """The command that replaces torch by the build that fits the driver, by uv's own knowledge of PyTorch's indexes."""
    how = how_installed()
    if how == "start.py":
        if WINDOWS:
            return f'$env:UV_TORCH_BACKEND="auto"; {set_up_again()}'
        return f"UV_TORCH_BACKEND=auto {set_up_again()}"
    if how == "uv tool":
        return f"uv tool install --reinstall --torch-backend=auto {DISTRIBUTION}"
    if how == "uvx":
        return f"uvx --torch-backend=auto --refresh {DISTRIBUTION}"
    into, torch = shell_word(sys.executable), shell_word(bounded("torch"))
    arguments = f"pip install --python {into} --torch-backend=auto --reinstall-package torch {torch}"
    if how == "uv":
        return f"uv {arguments}"
    return f"{pip('install', 'uv')}; {python()} -m uv {arguments}"


def pip(*words: str) -> str:
    """A pip command for the Python that runs this."""
    return " ".join([python(), "-m", "pip", *words])


def python() -> str:
    """The Python that runs this, as a shell takes it."""
    return shell_program(sys.executable)


def bounded(requirement: str) -> str:
    """A bare name with the bounds that this program has for it; anything else as it is."""
    wanted = {_name(text): re.sub(r"\s*;.*", "", text) for text in requirements_of_ours()}
    return wanted.get(requirement.lower(), requirement)


def requirements_of_ours() -> list[str]:
    """What the checkout asks for, or, where there is none, what the installed package does."""
    project = CHECKOUT / "pyproject.toml"
    if project.is_file():
        return [str(text) for text in tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]]
    try:
        return [text for text in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return []


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def _is_checkout() -> bool:
    return (CHECKOUT / "tools" / "start.py").is_file()


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""
