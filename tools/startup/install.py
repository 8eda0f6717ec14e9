"""What the set-up does, step by step: uv, the environment, llama.cpp, the packages, the converter, a trial."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from startup import advice, llama, records, torch_build, uv
from startup.children import WINDOWS
from startup.compiler import check_compiler, has_compiler
from startup.console import StartError, Step, say
from startup.language import either
from startup.pip_settings import pip_settings
from startup.runner import Place, Runner

STEPS = 6
BINDING = "llama-cpp-python"

# What must load before we call the environment ready: a wheel can install and still miss a system library.
_TRIAL = "import aegis, torch, transformers, peft, bitsandbytes, llama_cpp, sentencepiece, pydantic, typer"
_TRIAL_OF_LLAMA = Path(__file__).with_name("trial.py")


class Installer:
    """One set-up of `place`; a thorough one looks at every byte that is installed."""

    def __init__(self, place: Place, *, thorough: bool = False) -> None:
        self._thorough = thorough
        self._place = place
        self._settings = pip_settings()
        self._wheel = llama.wheel_for_this_machine(place.root)
        self._for_tests = place.extra == "dev" and not WINDOWS  # those of imatrix, which is not compiled on Windows

    def refuse_without_compiler(self) -> None:
        """Look for a compiler before anything is made, if none but a compiled llama.cpp is in sight.

        Raises:
            StartError: there is no wheel for this machine, and no compiler.
        """
        if self._wheel is None and not self._has_binding():
            check_compiler()

    def install(self, hold: int) -> Path:
        """Do every step that is not done; return the converter's folder. `hold` is the lock's file descriptor.

        Raises:
            StartError: with what failed and what to do.
        """
        place, tmp = self._place, self._place.own / "tmp"
        self._runner = Runner(place, self._settings, common=self._for_tests, hold=hold)
        place.log.write_bytes(b"")
        # packages are built here, not in a /tmp that may be small; what a killed build left is found and removed
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        say(f"      log: {place.log}")

        step = Step(1, STEPS, either("find or fetch uv", "uv を用意"))
        self._runner.uv = uv.find_or_fetch(
            place.own,
            lambda argv: self._runner.require(
                step, argv, either("uv could not be fetched", "uv を取得できませんでした")
            ),
        )
        step.done(str(self._runner.uv))
        step = Step(2, STEPS, either("make the environment", "環境を作成"))
        step.done(self._make(step))
        step = Step(3, STEPS, either("llama.cpp: its wheel, or a compiler", "llama.cpp: wheel またはコンパイラ"))
        step.done(self._llama(step))
        step = Step(4, STEPS, either("install the packages", "パッケージをインストール"))
        step.done(self._packages(step))
        step = Step(5, STEPS, either("get llama.cpp's converter", "llama.cpp の変換ツールを取得"))
        self._runner.require(
            step,
            [place.python, "-m", "vendor_llama_cpp"],
            either("llama.cpp's converter could not be fetched", "llama.cpp の変換ツールを取得できませんでした"),
            where=advice.last_line,
        )
        converter = Path(advice.last_line(place.log))
        step.done(str(converter))
        step = Step(6, STEPS, either("try the packages", "パッケージを試す"))
        self._runner.require(
            step,
            [place.python, "-c", _TRIAL],
            either("a package is installed but does not load", "インストール済みのパッケージが読み込めません"),
        )
        step.done()
        shutil.rmtree(tmp, ignore_errors=True)
        return converter

    def _make(self, step: Step) -> str:
        """Make the environment, or mend one that is half made; return what was done."""
        site_packages = self._place.usable()
        if site_packages is not None:
            repaired = records.repair(site_packages, hashes=self._thorough)
            self._place.mark_made()
            kept = either("kept", "そのまま使用")
            return (
                kept + either("; to be installed again: ", "。再インストール: ") + ", ".join(repaired)
                if repaired
                else kept
            )
        self._place.clear()
        base = getattr(sys, "_base_executable", None) or sys.executable
        self._runner.require(
            step,
            [self._runner.uv, "venv", "--allow-existing", "--python", base, self._place.folder],
            either("the virtual environment could not be made", "仮想環境を作成できませんでした"),
        )
        self._place.mark_made()
        return ""

    def _has_binding(self) -> bool:
        site_packages = self._place.usable()
        return site_packages is not None and any(site_packages.glob("llama_cpp_python-*.dist-info"))

    def _llama(self, step: Step) -> str:
        """Install llama.cpp's binding from a wheel if there is one that runs here; else see to a compiler.

        The tests link against a library that no wheel has: for them it is compiled where that is possible.
        """
        compiled = self._for_tests and has_compiler()
        if self._has_binding():
            if not compiled or llama.has_common(self._site_packages()):
                return either("kept", "そのまま使用")
            self._remove_binding(step)
        why = ""
        if self._wheel is not None and not compiled:
            found = llama.fetch(self._wheel, self._place.own, step.tick, self._settings.certificates)
            if isinstance(found, Path):
                self._runner.pip(
                    step,
                    ["--no-deps", found],
                    what=either("the wheel could not be installed", "wheel をインストールできませんでした"),
                )
                if self._runs(step):
                    return either(f"{found.name}, nothing to compile", f"{found.name}（コンパイル不要）")
                self._remove_binding(step)
                found = either(f"{found.name} does not run on this processor", f"{found.name} はこの CPU で動きません")
            why = f"{found}\n      "
        return why + either(f"to be compiled with {check_compiler()}", f"{check_compiler()} でコンパイルします")

    def _runs(self, step: Step) -> bool:
        argv = [self._place.python, _TRIAL_OF_LLAMA, self._site_packages() / "llama_cpp" / "lib"]
        return self._runner.run(step, argv) == 0

    def _remove_binding(self, step: Step) -> None:
        self._runner.require(step, [self._runner.uv, "pip", "uninstall", "--python", self._place.python, BINDING], "uv")

    def _site_packages(self) -> Path:
        found = self._place.usable()
        assert found is not None, "the environment has just been made or mended"
        return found

    def _packages(self, step: Step) -> str:
        """Install the project with all that it needs; return which build of torch was taken."""
        place = self._place
        chosen = self._backend(step)
        held = place.constraints
        if not torch_build.is_public_build(self._settings, chosen):
            held = place.own / "constraints.txt"
            held.write_text(torch_build.without_build(place.constraints.read_text(encoding="utf-8")), encoding="utf-8")
        project = f"{place.root}[{place.extra}]" if place.extra else str(place.root)
        compiling = advice.Compilation()
        self._runner.pip(
            step,
            [
                "-c",
                held,
                "--build-constraints",
                held,
                *_backend_flags(chosen),
                *self._other_torch(chosen),
                "-e",
                project,
            ],
            what=either("the packages could not be installed", "パッケージをインストールできませんでした"),
            where=compiling.where,
        )
        return "torch: " + (chosen or either("the index's", "インデックスのもの"))

    def _other_torch(self, chosen: str | None) -> list[str]:
        """What makes uv replace a CPU build of torch where one for the card is wanted: their versions are the same."""
        wanted = os.environ.get("UV_TORCH_BACKEND") or chosen or "cpu"
        if wanted == "cpu" or not torch_build.is_cpu_build(self._site_packages()):
            return []
        return ["--reinstall-package", "torch"]

    def _backend(self, step: Step) -> str | None:
        """The build of torch for this machine, if PyTorch's index has it within reach; else the public index's.

        Raises:
            StartError: on Windows the public index has no build for the card that is there.
        """
        chosen = torch_build.backend(self._settings)
        if chosen is None:
            return None
        held = self._place.own / "constraints.txt"
        held.write_text(
            torch_build.without_build(self._place.constraints.read_text(encoding="utf-8")), encoding="utf-8"
        )
        argv: list[str | Path] = ["--dry-run", "--no-deps", "-c", held, *_backend_flags(chosen), "torch"]
        if self._runner.run(step, self._runner.pip_argv(argv)) == 0:
            return chosen
        step.clear()
        if WINDOWS and chosen == "auto":
            raise StartError(
                either(
                    "There is an NVIDIA card, and PyTorch's index with the CUDA builds did not answer.\n"
                    f"{advice.tail(self._place.log)}",
                    "NVIDIA の GPU がありますが、CUDA 版のある PyTorch のインデックスに届きませんでした。\n"
                    f"{advice.tail(self._place.log)}",
                ),
                either(
                    "Check the connection and start again. To go on without the card: set UV_TORCH_BACKEND=cpu.",
                    "接続を確認して、もう一度始めてください。GPU なしで進めるには UV_TORCH_BACKEND=cpu を設定します。",
                ),
                code=7,
            )
        say(
            either(
                f"      PyTorch's own index ({chosen}) did not answer; torch comes from the public one.",
                f"      PyTorch のインデックス（{chosen}）に届かないため、torch は公開インデックスから取得します。",
            )
        )
        return None


def _backend_flags(chosen: str | None) -> list[str]:
    return [] if chosen is None else ["--torch-backend", chosen]
