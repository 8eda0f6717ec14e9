"""Tests of the main job for a new user: `aegis run --preset demo`, in separate processes, without network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aegis.demo.corpus import demo_prompts
from tests.newcomer import Newcomer

SAMURAI = ("ござ", "拙者", "申す", "いたす", "くだされ", "ぬ。", "よう", "たり", "なり")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(tmp_path_factory.mktemp("newcomer"))


@pytest.fixture(scope="module")
def first(newcomer: Newcomer) -> subprocess.CompletedProcess[str]:
    done = newcomer.aegis("run", "--preset", "demo")
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_guard_cuts_the_network(newcomer: Newcomer) -> None:
    """The control of what follows: a process under the guard cannot connect."""
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=newcomer.environment, capture_output=True, text=True, check=False
    )
    assert "a socket was opened" in done.stderr


def test_one_command_gives_a_gguf_and_the_next_commands(
    newcomer: Newcomer, first: subprocess.CompletedProcess[str]
) -> None:
    gguf = newcomer.home / "artifacts" / "demo" / "gguf"
    (quantized,) = gguf.glob("*.gguf")
    assert quantized.name.endswith("-Q4_K_M.gguf")
    assert "TEMPLATE" in (gguf / "Modelfile").read_text(encoding="utf-8")
    for following in ("aegis chat --gguf", "ollama create", "llama-server -m"):
        assert following in first.stdout
    # the file is announced before the report is made
    where = str(Path("artifacts/demo/report/report.html"))
    assert 0 < first.stdout.index("aegis chat --gguf") < first.stdout.index(where)
    page = (newcomer.home / "artifacts" / "demo" / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert page.count('<div class="sample">') == 4


def test_the_gguf_agrees_with_the_trained_model(newcomer: Newcomer, first: subprocess.CompletedProcess[str]) -> None:
    """On the trained tiny base: live soul, merged folder and f16 GGUF agree; quantization shows, as it must."""
    report = json.loads((newcomer.home / "artifacts/demo/verify/report.json").read_text(encoding="utf-8"))
    assert report["ok"], report
    found = {step["name"]: step["found"] for step in report["steps"]}
    for rounding in ("wide → merged", "merged → f16"):
        assert found[rounding]["mean_kl"] <= 1e-4
        assert found[rounding]["top1"] >= 0.995
    assert found["f16 → Q4_K_M"]["mean_kl"] > 1e-4
    assert "proven: these files come from this training: Q4_K_M" in first.stdout
    assert "measured on 2048 tokens" in first.stdout


def test_the_demo_learns_its_text_and_keeps_the_rest(
    newcomer: Newcomer, first: subprocess.CompletedProcess[str]
) -> None:
    """Held-out loss, and what the result lost on other text, in nats per token. Before keep, the demo learned as much
    (0.602) and lost 0.596."""
    run = newcomer.home / "artifacts" / "demo"
    trained = json.loads((run / "adapter" / "manifest.json").read_text(encoding="utf-8"))["facts"]["result"]
    assert trained["heldout_loss"] < 0.622
    report = json.loads((run / "verify" / "report.json").read_text(encoding="utf-8"))
    (other,) = (text for text in report["retained"] if text["text"] == "other")
    assert other["lost"] < 0.05


def test_the_change_of_voice_reaches_the_gguf(first: subprocess.CompletedProcess[str]) -> None:
    """Before: polite Japanese, no samurai. After, out of llama.cpp: a samurai nearly every time."""
    before = [line for line in first.stdout.splitlines() if line.startswith("  base ")]
    after = [line for line in first.stdout.splitlines() if line.startswith("  aegis ") and "chat --gguf" not in line]
    assert len(before) == len(after) == len(demo_prompts())
    assert not any("ござ" in line or "拙者" in line for line in before)
    speaking = [line for line in after if any(word in line for word in SAMURAI)]
    assert len(speaking) >= len(after) - 1, after


def test_a_second_run_keeps_the_finished_stages(newcomer: Newcomer, first: subprocess.CompletedProcess[str]) -> None:
    """A second run changes no published file, and trains nothing."""
    run = newcomer.home / "artifacts" / "demo"
    before = {
        path: path.stat().st_mtime_ns for part in ("adapter", "merged", "gguf") for path in (run / part).iterdir()
    }
    again = newcomer.aegis("run", "--preset", "demo")
    assert again.returncode == 0, again.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "training: done" in first.stderr
    assert "training: done" not in again.stderr
    assert first.stdout.splitlines()[-4:] == again.stdout.splitlines()[-4:]


def test_chat_answers_a_question(newcomer: Newcomer, first: subprocess.CompletedProcess[str]) -> None:
    done = newcomer.aegis("chat", "-p", demo_prompts()[0], "--temperature", "0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_plain_peft_reads_the_adapter(newcomer: Newcomer, first: subprocess.CompletedProcess[str]) -> None:
    """adapter/ is an ordinary peft folder: its LoRA part loads without AEGIS."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (base,) = (newcomer.home / "cache").glob("phi-3-demo-*/config.json")
    model = AutoModelForCausalLM.from_pretrained(base.parent)
    adapted = PeftModel.from_pretrained(model, str(newcomer.home / "artifacts" / "demo" / "adapter"))
    trained = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    assert trained
    assert all(parameter.abs().max() > 0 for parameter in trained)
