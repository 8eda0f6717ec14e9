"""The virtual environment `.venv`: made once, known to be whole by a stamp, repaired when it is not.

What stands in `.venv/start/`: `lock` (one set-up at a time), `setup.log`, `made.json` (which Python and folder
the environment was made for), `tmp` and `stamp.json`, written last. A stamp that fits means nothing is to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from startup import advice, records
from startup.children import child_environment, run_logged
from startup.console import StartError, Step, say
from startup.only_one import only_one
from startup.preflight import check_machine

WINDOWS = os.name == "nt"
STEPS = 5

# What must load before we call the environment ready: a wheel can install and still miss a system library.
_TRIAL = "import aegis, torch, transformers, peft, bitsandbytes, llama_cpp, sentencepiece, pydantic, typer"


class Environment:
    """`.venv` of the checkout at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.scripts = self.folder / ("Scripts" if WINDOWS else "bin")
        self.python = self.scripts / ("python.exe" if WINDOWS else "python")
        self.constraints = root / "tools" / "constraints.txt"
        self._own = self.folder / "start"
        self._made = self._own / "made.json"
        self._stamp = self._own / "stamp.json"
        self._tmp = self._own / "tmp"
        self.log = self._own / "setup.log"

    def program(self, name: str) -> Path:
        """The path of a console script in the environment."""
        return self.scripts / (f"{name}.exe" if WINDOWS else name)

    def key(self) -> str:
        """A hash of all that decides what is installed: project, versions, Python, folder, this module."""
        digest = hashlib.sha256()
        for part in (sys.version, sys.platform, platform.machine(), str(self.root)):
            digest.update(part.encode("utf-8") + b"\0")
        for file in (self.root / "pyproject.toml", self.constraints, Path(__file__)):
            digest.update(file.name.encode("utf-8") + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()

    def is_ready(self) -> bool:
        """Whether the stamp fits and what it vouches for is still there."""
        stamp = _read_json(self._stamp)
        return (
            stamp.get("key") == self.key()
            and self.python.exists()
            and self.program("aegis").exists()
            and Path(stamp.get("converter", "")).exists()
        )

    def set_up(self) -> None:
        """Bring the environment to readiness; at once if it is ready already.

        Raises:
            StartError: with what failed and what to do.
        """
        if self.is_ready():
            return
        if self.folder.exists() and not self._is_ours():
            raise StartError(f"{self.folder} exists and is not a virtual environment.", "Move it away and start again.")
        say(
            "Setting AEGIS up in .venv. The first time packages are fetched (with CUDA several GB), and\n"
            "llama-cpp-python is compiled: about 5 minutes on two cores. Safe to interrupt and start again."
        )
        step = Step(1, STEPS, "look at this machine")
        compiler = check_machine(self.root, needs_space=not self.python.exists())
        step.done(f"Python {sys.version.split()[0]}, {compiler}")
        self._own.mkdir(parents=True, exist_ok=True)
        with only_one(self._own / "lock") as hold:
            if self.is_ready():  # the one we waited for has done it
                return
            self._stamp.unlink(missing_ok=True)
            self._build(hold)

    def _build(self, hold: int) -> None:
        self.log.write_bytes(b"")
        # pip builds here, not in a /tmp that may be small, and what a killed pip left is found and removed
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._tmp.mkdir(exist_ok=True)
        say(f"      log: {self.log}")
        key = self.key()  # of the files as they are now; edited while pip works, they are installed next time

        step = Step(2, STEPS, "make the environment")
        step.done(self._make())

        step = Step(3, STEPS, "install the packages")
        # -v because only then does pip let the compiler's progress through
        install = ["-m", "pip", "install", "-v", "--no-input", "-c", str(self.constraints), "-e", ".[dev]"]
        self._logged(step, install, hold, what="pip could not install the packages", where=advice.where_pip_is)
        step.done()

        step = Step(4, STEPS, "get llama.cpp's converter")
        self._logged(
            step,
            ["-m", "vendor_llama_cpp"],
            hold,
            what="llama.cpp's converter could not be fetched",
            where=advice.last_line,
        )
        converter = self._converter()
        step.done(str(converter))

        step = Step(5, STEPS, "try the packages")
        self._logged(step, ["-c", _TRIAL], hold, what="a package is installed but does not load")
        step.done()
        shutil.rmtree(self._tmp, ignore_errors=True)
        write_atomically(self._stamp, json.dumps({"key": key, "converter": str(converter)}))

    def _is_ours(self) -> bool:
        """A virtual environment, or what an interrupted start left of one, or empty."""
        if self._own.is_dir() or (self.folder / "pyvenv.cfg").is_file():
            return True
        return self.folder.is_dir() and next(self.folder.iterdir(), None) is None

    def _make(self) -> str:
        """Make the environment, or mend one that is half made; return what was done."""
        wanted = {"root": str(self.root), "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
        made = _read_json(self._made) or wanted  # made by hand: taken if its Python works and is the one we run
        site_packages = self._site_packages(wanted["python"])
        if site_packages is not None and made == wanted:
            repaired = records.repair(site_packages)
            if not any(name.startswith("pip-") for name in repaired):
                write_atomically(self._made, json.dumps(wanted))
                return f"kept; to be installed again: {', '.join(repaired)}" if repaired else "kept"
        again = site_packages is not None or self._made.exists()
        self._clear()
        base = getattr(sys, "_base_executable", None) or sys.executable
        try:
            if Path(base).resolve() == Path(sys.executable).resolve():
                venv.EnvBuilder(with_pip=True, symlinks=not WINDOWS).create(self.folder)
            else:  # started with a virtual environment's Python, perhaps this very one's
                subprocess.run([base, "-m", "venv", str(self.folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "output", None) or b""
            self.log.write_bytes(output)
            raise StartError(
                f"The virtual environment could not be made: {error}\n{output.decode('utf-8', 'replace')}",
                "If a package is named above, install it (Debian and Ubuntu: sudo apt install python3-venv).",
            ) from error
        write_atomically(self._made, json.dumps(wanted))
        return "made anew" if again else ""

    def _site_packages(self, version: str) -> Path | None:
        """Where packages go, said by the environment's own Python; None if that or its pip does not work."""
        if not self.python.exists():
            return None
        probe = (
            "import sys, sysconfig, pip._internal.cli.main as _;"
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

    def _clear(self) -> None:
        """Empty the environment but for our own folder, whose lock we hold."""
        self._made.unlink(missing_ok=True)
        for entry in self.folder.iterdir():
            if entry == self._own:
                continue
            try:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            except OSError as error:
                raise StartError(
                    f"The old environment could not be removed: {error}",
                    "Close programs that use .venv (editors, terminals) or delete it, and start again.",
                ) from error

    def _logged(
        self,
        step: Step,
        arguments: Sequence[str],
        hold: int,
        what: str,
        where: Callable[[Path], str] = lambda log: "",
    ) -> None:
        """Run our Python with its output in the log, from which `where` reads how far it is."""
        extra = {"PYTHONUNBUFFERED": "1"}
        if not os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL"):
            extra["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count() or 1)
        if not WINDOWS:  # there, the system's own folder has the shorter path
            extra["TMPDIR"] = str(self._tmp)
        code = run_logged(
            [self.python, *arguments],
            log=self.log,
            cwd=self.root,
            environment=child_environment(**extra),
            tick=lambda: step.tick(where(self.log)),
            cache_rotation=hold,
        )
        if code != 0:
            step.clear()
            raise StartError(
                f"{what} (exit code {code}). The log ends with:\n\n{advice.tail(self.log)}\n",
                f"{advice.cause(self.log)}\nThe whole log: {self.log}",
                code=7,
            )

    def _converter(self) -> Path:
        """The path that `python -m vendor_llama_cpp` printed as its last line."""
        return Path(advice.tail(self.log).splitlines()[-1].strip())


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
    """Write `text` so that a reader sees the old file or the whole new one, whatever interrupts us."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
