"""The three commands: what each runs once the environment stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from startup.children import Stopped, catch_signals, child_environment, run_attached
from startup.console import StartError, Step, prepare_streams, say
from startup.environment import Environment
from startup.language import either

ROOT = Path(__file__).resolve().parents[2]

_IN_PARALLEL = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
"""One file's tests stay in one process, so that what a module makes for them is made once; tests/conftest.py has the
order of the files."""

# The job must not reach for the network: what it needs is there after set-up.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
}


def run(command: str, rest: Sequence[str]) -> int:
    """Run a command and return the exit code; mistakes and interruptions end without a traceback."""
    prepare_streams()
    catch_signals()
    try:
        return _run(command, rest)
    except StartError as error:
        return _failed(error.what, error.fix, error.code)
    except OSError as error:
        fix = either(
            "Free space, or clone into a folder of your own; close programs that use .venv; start again.",
            "空きを作るか、自分のフォルダに clone し、.venv を使うプログラムを閉じて、もう一度始めてください。",
        )
        return _failed(str(error), fix, 3)
    except Stopped as stop:
        say(
            either(
                f"\nInterrupted (signal {stop.signum}). Start again to go on: what is done is kept.",
                f"\n中断しました（シグナル {stop.signum}）。もう一度始めれば、終わった分の続きから進みます。",
            )
        )
        return 128 + stop.signum


def _run(command: str, rest: Sequence[str]) -> int:
    environment = Environment(ROOT, extra="dev" if command == "test" else "")
    environment.set_up(again=command == "setup")
    if command == "demo":
        return _demo(environment, rest)
    if command == "test":
        return _test(environment, rest)
    program = environment.program("aegis")
    say(either(f"Ready. The command is {program}", f"準備ができました。コマンドは {program} です。"))
    return 0


def _failed(what: str, fix: str, code: int) -> int:
    say("\n" + either(f"error: {what}", f"エラー: {what}"))
    say(either(f"what to do: {fix}", f"対処: {fix}"))
    return code


def _demo(environment: Environment, rest: Sequence[str]) -> int:
    argv: list[str | Path] = [environment.program("aegis"), "run", "--preset", "demo", *rest]
    return run_attached(argv, cwd=ROOT, environment=child_environment(**OFFLINE))


def _test(environment: Environment, rest: Sequence[str]) -> int:
    """Run every check even when one fails, and return the first failure's code. pytest has the last word."""
    checks: list[tuple[str, list[str]]] = [
        ("ruff check", ["ruff", "check", "."]),
        ("ruff format", ["ruff", "format", "--check", "."]),
        ("mypy", ["mypy"]),
        ("pytest", ["pytest", *_IN_PARALLEL, *rest]),
    ]
    failed: list[tuple[str, int]] = []
    for number, (title, arguments) in enumerate(checks, start=1):
        if title == "pytest" and failed:
            names = ", ".join(name for name, _ in failed)
            say(
                either(
                    f"FAILED so far: {names}. pytest runs all the same.",
                    f"ここまでの失敗: {names}。pytest は続けて実行します。",
                )
            )
        Step(number, len(checks), title)
        # one thread per process: the processes are as many as the cores
        argv = [environment.python, "-m", *arguments]
        code = run_attached(argv, cwd=ROOT, environment=child_environment(OMP_NUM_THREADS="1"))
        if code != 0:
            failed.append((title, code))
    return failed[0][1] if failed else 0
