"""The four commands: what each runs once the environment stands."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from startup.children import Stopped, catch_signals, child_environment, run_attached
from startup.console import StartError, Step, prepare_streams, say
from startup.environment import Environment
from startup.language import either
from startup.lock import refresh

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
        say()
        say(either(f"error: {error.what}", f"エラー: {error.what}"))
        say(either(f"what to do: {error.fix}", f"対処: {error.fix}"))
        return error.code
    except OSError as error:
        say("\n" + either(f"error: {error}", f"エラー: {error}"))
        say(
            either(
                "what to do: Free space, or clone into a folder of your own; close programs that use .venv (editors,\n"
                "terminals); start again.",
                "対処: 空きを作るか、自分のフォルダに clone してください。.venv を使っているプログラム\n"
                "（エディタ、端末）を閉じて、もう一度始めてください。",
            )
        )
        return 3
    except KeyboardInterrupt:
        say("\n" + either("Interrupted. ", "中断しました。") + _again())
        return 128 + signal.SIGINT
    except Stopped as stop:
        say("\n" + either(f"Stopped by signal {stop.signum}. ", f"シグナル {stop.signum} で停止しました。") + _again())
        return 128 + stop.signum


def _run(command: str, rest: Sequence[str]) -> int:
    if command == "lock":
        refresh(ROOT)
        return 0
    environment = Environment(ROOT, extra="dev" if command == "test" else "")
    environment.set_up(again=command == "setup")
    if command == "demo":
        return _demo(environment, rest)
    if command == "test":
        return _test(environment, rest)
    program = environment.program("aegis")
    say(either(f"Ready. The command is {program}", f"準備ができました。コマンドは {program} です。"))
    return 0


def _again() -> str:
    return either("Start again to go on: what is done is kept.", "もう一度始めれば、終わった分の続きから進みます。")


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
            say("FAILED so far: " + ", ".join(name for name, _ in failed) + ". pytest runs all the same.")
        Step(number, len(checks), title)
        # one thread per process: the processes are as many as the cores
        code = run_attached(
            [environment.python, "-m", *arguments], cwd=ROOT, environment=child_environment(OMP_NUM_THREADS="1")
        )
        if code == 128 + signal.SIGINT:
            return code
        if code != 0:
            failed.append((title, code))
    return failed[0][1] if failed else 0
