"""Tests of the lock: one holder at a time, a message while waiting, and freed when its holder ends."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from startup.only_one import only_one

HOLDER = """
import sys, subprocess, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from startup.only_one import only_one
with only_one(Path(sys.argv[2])):
    child = None
    if sys.argv[3] == "child":
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=0, close_fds=False)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(tools: Path, lock: Path, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tools), str(lock), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def take(lock: Path, taken: threading.Event) -> None:
    with only_one(lock):
        taken.set()


@pytest.mark.parametrize(
    "how", ["alone", pytest.param("child", marks=pytest.mark.skipif(os.name == "nt", reason="POSIX"))]
)
def test_the_lock_waits_for_its_holder_and_the_holders_child(
    tools: Path, lock: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed holder frees the lock; a child that inherited it (pip) keeps it until it ends too."""
    holder = hold(tools, lock, how)
    assert holder.stdin is not None
    assert holder.stdout is not None
    taken = threading.Event()
    waiter = threading.Thread(target=take, args=(lock, taken))
    waiter.start()
    try:
        assert not taken.wait(1.2)
        holder.kill()
        holder.wait()
        if how == "child":
            assert not taken.wait(1.2)
    finally:
        holder.kill()
        holder.stdin.close()  # ends the child
        holder.stdout.close()
        waiter.join(10)
    assert taken.is_set()
    assert capsys.readouterr().out.count("Another start.py") == 1
