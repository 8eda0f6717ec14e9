"""The virtual environment `.venv`: made once, known to be whole by a stamp, mended when it is not.

What stands in `.venv/start/`: `lock` (one set-up at a time), `setup.log`, `uv` where none was on PATH, `tmp`, and
`stamp.json`, written last. A stamp that fits means nothing is to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from startup.children import WINDOWS, child_environment
from startup.console import StartError, say
from startup.install import Installer
from startup.language import either
from startup.only_one import only_one
from startup.torch_build import has_nvidia_driver

# packages, their archives and the compilation; torch alone makes the difference
NEEDED_BYTES, NEEDED_BYTES_CUDA = 4 * 1000**3, 12 * 1000**3
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
        self.site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))
        self.constraints = root / "tools" / "constraints.txt"
        self.own = self.folder / "start"
        self.log = self.own / "setup.log"
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
        stamp = self._read_stamp()
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
            again: trust no stamp: look at every byte of every package and at torch's build, and mend what is amiss.

        Raises:
            StartError: with what failed and what to do.
        """
        if self.is_ready() and not again:
            return
        ours = self.own.is_dir() or (self.folder / "pyvenv.cfg").is_file()
        if self.folder.exists() and not ours and any(self.folder.iterdir()):
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
        installer = Installer(self)
        if not self.python.exists():
            check_space(self.root)
        self.own.mkdir(parents=True, exist_ok=True)
        with only_one(self.own / "lock"):
            if self.is_ready() and not again:  # the one we waited for has done it
                return
            # what was installed for the tests stays up to date with the rest
            self.extra = self.extra or self._read_stamp().get("extra", "")
            self._stamp.unlink(missing_ok=True)
            key = self.key()  # of the files as they are now; edited meanwhile, they are installed next time
            converter = installer.install(thorough=again)
            stamp = {"key": key, "converter": str(converter), "extra": self.extra}
            part = self._stamp.with_suffix(".part")
            part.write_text(json.dumps(stamp), encoding="utf-8")
            part.replace(self._stamp)

    def is_usable(self) -> bool:
        """Whether the environment is of this Python and was made for this folder.

        One made by hand is kept too, if it is of the Python that we run.
        """
        try:
            made = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8")
            probe = [str(self.python), "-c", ""]
            runs = subprocess.run(probe, capture_output=True, env=child_environment(), check=False).returncode == 0
        except OSError:
            return False
        version = rf"^version(_info)? = {sys.version_info.major}\.{sys.version_info.minor}\b"
        program = self.program("aegis")
        moved = program.exists() and os.fsencode(self.folder) not in program.read_bytes()
        return runs and not moved and re.search(version, made, re.MULTILINE) is not None

    def clear(self) -> None:
        """Empty the environment but for our own folder, whose lock we hold."""
        (self.folder / "pyvenv.cfg").unlink(missing_ok=True)  # first: without it, what is left is not kept
        for entry in self.folder.iterdir():
            if entry.is_symlink() or entry.is_file():
                entry.unlink()
            elif entry != self.own:
                shutil.rmtree(entry)

    def _read_stamp(self) -> dict[str, str]:
        """What the stamp says; nothing if it is absent or cut short."""
        try:
            value = json.loads(self._stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def check_space(root: Path) -> None:
    """Refuse a disk that would be full before the packages are there.

    Raises:
        StartError: there is too little space.
    """
    free, needed = shutil.disk_usage(root).free, NEEDED_BYTES_CUDA if has_nvidia_driver() else NEEDED_BYTES
    if free < needed:
        have, want = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.0f} GB"
        raise StartError(
            either(
                f"Too little disk space: {have} free, about {want} needed at {root}",
                f"ディスクの空きが足りません: 空き {have}、必要 約 {want}（{root}）",
            ),
            either("Free some space, or clone to another disk.", "空きを作るか、別のディスクに clone してください。"),
        )
