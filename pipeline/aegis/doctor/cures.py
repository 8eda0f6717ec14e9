"""Returns the command that mends an installation; it depends on how the environment was made."""

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
"""What made the environment: tools/start.py, `uv tool install`, `uvx`, `uv venv`; or venv or pipx, which use pip."""


def how_installed() -> How:
    """Find out what made the current environment, by the files that its maker leaves in it."""
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
    """Return the command that repairs the installation."""
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
    """Return the command that installs `requirements` within this program's version bounds.

    In an environment that its maker manages alone, this is the maker's command, which installs everything.

    Args:
        requirements: names, or names with a version.
        again: reinstall their files even if they are installed, without their dependencies.
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
    """Return the command that replaces torch with the build for the driver; uv knows PyTorch's indexes."""
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
    """Return a pip command for the current Python."""
    return " ".join([python(), "-m", "pip", *words])


def python() -> str:
    """Return the path of the current Python, quoted for a shell."""
    return shell_program(sys.executable)


def bounded(requirement: str) -> str:
    """Return a bare name with this program's version bounds; anything else as it is."""
    wanted = {_name(text): re.sub(r"\s*;.*", "", text) for text in requirements_of_ours()}
    return wanted.get(requirement.lower(), requirement)


def requirements_of_ours() -> list[str]:
    """Return the requirements of the checkout's pyproject.toml; without a checkout, of the installed package."""
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
