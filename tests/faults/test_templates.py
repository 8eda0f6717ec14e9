"""Tests of an untrusted chat template under every command that renders one: exit 4, within bounds, never a bug."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.gguf_edit import GgufEdit
from tests.processes import runs, wait_until

ROOT = Path(__file__).parents[2]
ALL_MEMORY = "{% set box = namespace(x='a') %}{% for i in range(64) %}{% set box.x = box.x + box.x %}{% endfor %}"
RAISES = "{{ no_such_thing.x }}"
ONE_CALL = "{% set x = 3**(10**8) %}"


def with_template(place: Path, template: str, base: Path, gguf: Path) -> dict[str, list[str]]:
    """Return the arguments of each command that renders the template."""
    folder = place / "base"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    edited = GgufEdit(gguf)
    edited["tokenizer.chat_template"] = template
    edited.save(place / "x.gguf")
    messages = [{"role": "user", "content": "春は"}, {"role": "assistant", "content": "桜。"}]
    rows = place / "rows.jsonl"
    rows.write_text(f"{json.dumps({'messages': messages})}\n" * 8, encoding="utf-8")
    data = ["--base-model", str(folder), "--dataset", str(rows)]
    return {
        "train": ["train", *data, "--run", str(place / "run"), "--max-steps", "1", "--device", "cpu"],
        "plan": ["plan", *data],
        "chat": ["chat", "--gguf", str(place / "x.gguf"), "--prompt", "x", "--max-tokens", "4"],
        "serve": ["serve", "--gguf", str(place / "x.gguf"), "--port", "0"],
    }


def start(arguments: list[str], place: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "AEGIS_LOG_DIR": str(place), "AEGIS_LANG": "en"}
    return subprocess.Popen(
        [sys.executable, "-m", "aegis", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        cwd=place,
        env=environment,
    )


@pytest.mark.parametrize("template", [ALL_MEMORY, RAISES], ids=["all memory", "raises"])
@pytest.mark.parametrize("command", ["train", "plan", "chat"])
def test_every_fault_of_a_template_is_reported_as_the_templates(
    command: str, template: str, quick_base: Path, quick_gguf: Path, tmp_path: Path
) -> None:
    with start(with_template(tmp_path, template, quick_base, quick_gguf)[command], tmp_path) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 4, output
    assert "template" in output
    assert "bug" not in output


@pytest.mark.parametrize("command", ["train", "plan", "chat", "serve"])
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process there")
def test_ctrl_c_ends_a_command_whose_template_computes_inside_one_call(
    command: str, quick_base: Path, quick_gguf: Path, tmp_path: Path
) -> None:
    """It would not give Python's lock back; and the process that does the work goes too."""
    with start(with_template(tmp_path, ONE_CALL, quick_base, quick_gguf)[command], tmp_path) as process:
        worker = _busy_child(process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    wait_until(lambda: not runs(worker.pid), limit_s=10)


def _busy_child(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the confined process as soon as it has used more processor time than its start takes."""
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                if child.cpu_times().user > 4:
                    return child
        time.sleep(0.1)
    raise AssertionError(f"it ended before: {process.communicate()[0]}")
