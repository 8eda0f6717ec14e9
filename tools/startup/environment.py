"""The virtual environment `.venv`: made once, known to be whole by a stamp, repaired when it is not.

What stands in `.venv/start/`: `lock` (one set-up at a time), `setup.log`, `made.json` (which Python and folder
the environment was made for), `uv` where none was on PATH, a fetched wheel of llama.cpp's binding, `tmp`, and
`stamp.json`, written last. A stamp that fits means nothing is to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from startup.children import WINDOWS, child_environment
from startup.console import StartError, say
from startup.install import Installer
from startup.language import either
from startup.machine import check_machine
from startup.only_one import only_one
from startup.torch_build import has_nvidia_driver

_SOURCES = ("environment.py", "install.py", "llama.py", "torch_build.py", "lean.cmake")


class Environment:
    """`.venv` of the checkout at `root`.

    Args:
        root: the checkout.
        extra: "dev" for what the tests need too, "" for what users need.
    """

    def __init__(self, root: Path, extra: str = "") -> None:
        self.root = root
        self.extra = extra
        self.folder = root / ".venv"
        self.scripts = self.folder / ("Scripts" if WINDOWS else "bin")
        self.python = self.scripts / ("python.exe" if WINDOWS else "python")
        self.constraints = root / "tools" / "constraints.txt"
        self.own = self.folder / "start"
        self.log = self.own / "setup.log"
        self._made = self.own / "made.json"
        self._stamp = self.own / "stamp.json"

    def program(self, name: str) -> Path:
        """The path of a console script in the environment."""
        return self.scripts / (f"{name}.exe" if WINDOWS else name)

    def key(self) -> str:
        """A hash of all that decides what is installed: project, versions, Python, folder, the set-up itself."""
        digest = hashlib.sha256()
        for part in (sys.version, sys.platform, platform.machine(), str(self.root)):
            digest.update(part.encode("utf-8") + b"\0")
        own = [Path(__file__).with_name(name) for name in _SOURCES]
        for file in (self.root / "pyproject.toml", self.constraints, *own):
            digest.update(file.name.encode("utf-8") + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()

    def is_ready(self) -> bool:
        """Whether the stamp fits and what it vouches for is still there."""
        stamp = _read_json(self._stamp)
        return (
            stamp.get("key") == self.key()
            and self.extra in ("", stamp.get("extra"))
            and self.python.exists()
            and self.program("aegis").exists()
            and Path(stamp.get("converter", "")).exists()
        )

    def set_up(self, *, again: bool = False) -> None:
        """Bring the environment to readiness; at once if it is ready already.

        Args:
            again: trust no stamp: look at every file of every package and at torch's build, and mend what is amiss.

        Raises:
            StartError: with what failed and what to do.
        """
        if self.is_ready() and not again:
            return
        if self.folder.exists() and not self._is_ours():
            raise StartError(
                either(
                    f"{self.folder} exists and is not a virtual environment.",
                    f"{self.folder} がすでにありますが、仮想環境ではありません。",
                ),
                either("Move it away and start again.", "別の場所へ移してから、もう一度始めてください。"),
            )
        say(
            either(
                "Setting AEGIS up in .venv. The first time its packages are downloaded (with CUDA several GB).\n"
                "Safe to interrupt and start again.",
                "AEGIS を .venv に準備します。初回はパッケージをダウンロードします（CUDA 版は数 GB）。\n"
                "途中で止めても、もう一度始めれば続きから進みます。",
            )
        )
        installer = Installer(self, thorough=again)
        check_machine(self.root, needs_space=not self.python.exists(), cuda=has_nvidia_driver())
        installer.refuse_without_compiler()
        self.own.mkdir(parents=True, exist_ok=True)
        with only_one(self.own / "lock") as hold:
            if self.is_ready() and not again:  # the one we waited for has done it
                return
            had = _read_json(self._stamp).get("extra", "")
            self._stamp.unlink(missing_ok=True)
            self.extra = self.extra or had  # what was installed for the tests stays up to date with the rest
            key = self.key()  # of the files as they are now; edited meanwhile, they are installed next time
            converter = installer.install(hold)
            stamp = {"key": key, "converter": str(converter), "extra": self.extra}
            write_atomically(self._stamp, json.dumps(stamp))

    def _is_ours(self) -> bool:
        """A virtual environment, or what an interrupted start left of one, or empty."""
        if self.own.is_dir() or (self.folder / "pyvenv.cfg").is_file():
            return True
        return self.folder.is_dir() and next(self.folder.iterdir(), None) is None

    def wanted(self) -> dict[str, str]:
        """For which folder and Python the environment is made."""
        return {"root": str(self.root), "python": f"{sys.version_info.major}.{sys.version_info.minor}"}

    def usable(self) -> Path | None:
        """Where its packages go, if the environment works and was made for this folder and Python; else None.

        One made by hand is taken if its Python works and is the version we run.
        """
        site_packages = self._site_packages(self.wanted()["python"])
        return site_packages if (_read_json(self._made) or self.wanted()) == self.wanted() else None

    def mark_made(self) -> None:
        """Record what the environment was made for."""
        write_atomically(self._made, json.dumps(self.wanted()))

    def _site_packages(self, version: str) -> Path | None:
        """Where packages go, as the environment's own Python reports it; None if that does not work."""
        if not self.python.exists():
            return None
        probe = (
            "import sys, sysconfig;"
            "print('%d.%d' % sys.version_info[:2]); print(sys.prefix); print(sysconfig.get_path('purelib'))"
        )
        try:
            answer = subprocess.run(
                [str(self.python), "-c", probe],
                capture_output=True,
                text=True,
                encoding="utf-8",
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                timeout=120,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        lines = answer.stdout.splitlines()
        # without pyvenv.cfg it would answer for the system's Python, whose packages are not ours to mend
        if answer.returncode != 0 or len(lines) != 3 or lines[0] != version or not _same(lines[1], self.folder):
            return None
        return Path(lines[2])

    def clear(self) -> None:
        """Empty the environment but for our own folder, whose lock we hold."""
        self._made.unlink(missing_ok=True)
        for entry in self.folder.iterdir():
            if entry == self.own:
                continue
            try:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            except OSError as error:
                raise StartError(
                    either(
                        f"The old environment could not be removed: {error}", f"古い環境を削除できませんでした: {error}"
                    ),
                    either(
                        "Close programs that use .venv (editors, terminals) or delete it, and start again.",
                        ".venv を使っているプログラム（エディタ、端末）を閉じるか .venv を削除して、"
                        "もう一度始めてください。",
                    ),
                ) from error


def _same(one: str, other: Path) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, str]:
    """The object in `path`; empty if it is absent or cut short."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the complete new one, whatever interrupts us."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
