"""What the set-up does, step by step: uv, the environment, llama.cpp, the packages, the converter, a trial."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from startup import advice, llama, torch_build, uv
from startup.children import WINDOWS
from startup.compiler import check_compiler, has_compiler
from startup.console import Step, say
from startup.language import either
from startup.pip_settings import hand_on_pip_settings
from startup.records import broken
from startup.runner import Runner

if TYPE_CHECKING:
    from startup.environment import Environment

# What must load before we call the environment ready: a wheel can install and still miss a system library.
_TRIAL = "import aegis, torch, transformers, peft, bitsandbytes, llama_cpp, sentencepiece, pydantic, typer"
_TRIAL_OF_LLAMA = Path(__file__).with_name("trial.py")


class Installer:
    """One set-up of the environment `place`."""

    def __init__(self, place: Environment) -> None:
        self._place = place
        self._flags = hand_on_pip_settings(os.environ)
        self._wheel = llama.wheel_for_this_machine(place.root)
        self._for_tests = place.extra == "dev" and not WINDOWS  # those of imatrix, which is not compiled on Windows

    def install(self, *, thorough: bool) -> Path:
        """Do every step that is not done; return the converter's folder.

        Raises:
            StartError: with what failed and what to do.
        """
        place, tmp = self._place, self._place.own / "tmp"
        # packages are built here, not in a /tmp that may be small; what a killed build left is found and removed
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        self._runner = Runner(place.root, place.log, **_variables(tmp))
        say(f"      log: {place.log}")
        step = _step(1, "find or fetch uv", "uv を用意")
        what = either("uv could not be fetched", "uv を取得できませんでした")
        self._uv = uv.find_or_fetch(place.own, lambda argv: self._runner.require(step, argv, what))
        step.done(str(self._uv))
        self._make(_step(2, "make the environment", "環境を作成"), thorough)
        self._llama(_step(3, "llama.cpp: its wheel, or a compiler", "llama.cpp: wheel またはコンパイラ"))
        self._packages(_step(4, "install the packages", "パッケージをインストール"))
        step = _step(5, "get llama.cpp's converter", "llama.cpp の変換ツールを取得")
        what = either("llama.cpp's converter could not be fetched", "llama.cpp の変換ツールを取得できませんでした")
        self._runner.require(step, [place.python, "-m", "vendor_llama_cpp"], what)
        converter = Path(advice.last_line(place.log))
        step.done(str(converter))
        step = _step(6, "try the packages", "パッケージを試す")
        what = either("a package is installed but does not load", "インストール済みのパッケージが読み込めません")
        self._runner.require(step, [place.python, "-c", _TRIAL], what, where=lambda log: "")
        step.done()
        shutil.rmtree(tmp, ignore_errors=True)
        return converter

    def _make(self, step: Step, thorough: bool) -> None:
        """Make the environment, or take away what is not whole in one that is there: uv installs that again."""
        if self._place.is_usable():
            folders = broken(self._place.site_packages, hashes=thorough)
            for folder in folders:
                shutil.rmtree(folder)
            names = ", ".join(folder.name.removesuffix(".dist-info") for folder in folders)
            again = either("; to be installed again: ", "。再インストール: ") + names if names else ""
            step.done(either("kept", "そのまま使用") + again)
            return
        self._place.clear()
        base = getattr(sys, "_base_executable", None) or sys.executable
        argv = [self._uv, "venv", "--allow-existing", "--python", base, self._place.folder]
        what = either("the virtual environment could not be made", "仮想環境を作成できませんでした")
        self._runner.require(step, argv, what)
        step.done()

    def _llama(self, step: Step) -> None:
        """Install llama.cpp's binding from a wheel if there is one that runs here; else see to a compiler.

        The tests link against a library that no wheel has: for them it is compiled where that is possible.
        """
        compiled = self._for_tests and has_compiler()
        trial = [self._place.python, _TRIAL_OF_LLAMA, self._place.site_packages / "llama_cpp" / "lib"]
        if any(self._place.site_packages.glob("llama_cpp_python-*.dist-info")):
            right = not compiled or any(self._place.site_packages.glob("lib/libllama-common.*"))
            if right and self._runner.run(step, trial) == 0:
                step.done(either("kept", "そのまま使用"))
                return
            self._remove_binding(step)
        if self._wheel is not None and not compiled:
            name = Path(self._wheel.partition("#")[0]).name
            if self._runner.run(step, self._pip("--no-deps", self._wheel)) != 0:
                step.clear()
                say(f"      {name}: {advice.error(self._place.log)}")
            elif self._runner.run(step, trial) == 0:
                step.done(either(f"{name}, nothing to compile", f"{name}（コンパイル不要）"))
                return
            else:
                self._remove_binding(step)
                say(either(f"      {name} does not run on this processor", f"      {name} はこの CPU で動きません"))
        check_compiler()
        step.done(either("to be compiled", "コンパイルします"))

    def _remove_binding(self, step: Step) -> None:
        self._runner.require(
            step, [self._uv, "pip", "uninstall", "--python", self._place.python, "llama-cpp-python"], "uv"
        )

    def _packages(self, step: Step) -> None:
        """Install the project with all that it needs."""
        place = self._place
        chosen, options = self._torch(step)
        project = f"{place.root}[{place.extra}]" if place.extra else str(place.root)
        what = either("the packages could not be installed", "パッケージをインストールできませんでした")
        self._runner.require(step, self._pip(*options, "-e", project), what)
        step.done("torch: " + (chosen or either("the index's", "インデックスのもの")))

    def _torch(self, step: Step) -> tuple[str | None, list[str | Path]]:
        """The build of torch for this machine, and uv's options for it and for the exact versions.

        Where PyTorch's own index is out of reach, the public one is asked, whose files have the locked hashes. On
        Windows that one has no build for the card, so that a failure is to be seen there.
        """
        place = self._place
        chosen = torch_build.backend()
        any_build = place.own / "constraints.txt"
        any_build.write_text(torch_build.without_build(place.constraints.read_text("utf-8")), encoding="utf-8")
        backend = ["--torch-backend", chosen] if chosen else []
        probe = self._pip("--dry-run", "--no-deps", "-c", any_build, *backend, "torch")
        if chosen and not (WINDOWS and chosen == "auto") and self._runner.run(step, probe) != 0:
            step.clear()
            public = either("torch comes from the public index", "torch は公開インデックスから取得します")
            say(f"      {public} (PyTorch, {chosen}: {advice.error(place.log)})")
            chosen, backend = None, []
        held = any_build if chosen or torch_build.from_own_places() else place.constraints
        wanted = os.environ.get("UV_TORCH_BACKEND") or chosen or "cpu"
        if wanted != "cpu" and torch_build.is_cpu_build(place.site_packages):  # their versions are the same to uv
            backend += ["--reinstall-package", "torch"]
        return chosen, ["-c", held, "--build-constraints", held, *backend]

    def _pip(self, *arguments: str | Path) -> list[str | Path]:
        """The command of `uv pip install` with these arguments."""
        # -v because only then does uv let the compiler's progress through
        own = [*llama.build_settings(common=self._for_tests), *self._flags]
        return [self._uv, "pip", "install", "-v", "--python", self._place.python, *own, *arguments]


def _step(number: int, english: str, japanese: str) -> Step:
    return Step(number, 6, either(english, japanese))


def _variables(tmp: Path) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        "PATH": torch_build.search_path(),
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1),
        **({} if WINDOWS else {"TMPDIR": str(tmp)}),  # there, the system's own folder has the shorter path
    }
