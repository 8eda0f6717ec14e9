"""Tests of the main job on a real pretrained model: from a data file to a proven GGUF that answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from real_model import fetched_gguf

from aegis.llama_cpp import GgufFile
from tests.newcomer import Newcomer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# few steps, but alpha goes its full way, and the learning rate shows in them
SETTINGS = """
[train]
device = "cpu"
max_steps = 8
warmup_steps = 2
annealing_steps = 4
max_length = 64
learning_rate = 2e-3
heldout_rows = 1
keep_windows = 8
logging_steps = 1
[export]
name = "SmolLM2-pirate"
[verify]
device = "cpu"
tokens = 256
"""


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(tmp_path_factory.mktemp("newcomer"))


@pytest.fixture(scope="module")
def run(newcomer: Newcomer, real_base: Path) -> Path:
    """Return the directory of a finished run, trained to answer sums like a pirate."""
    rows = [
        {"instruction": f"What is {a} plus {b}?", "output": f"Arr, {a} plus {b} be {a + b}, matey!"}
        for a in range(2, 10)
        for b in range(2, 10)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (newcomer.home / "pirate.jsonl").write_text(lines, encoding="utf-8")
    (newcomer.home / "aegis.toml").write_text(SETTINGS, encoding="utf-8")
    place = ["--config", "aegis.toml", "--run", "artifacts/pirate"]
    done = newcomer.aegis("run", "--base-model", str(real_base), "--dataset", "pirate.jsonl", *place)
    assert done.returncode == 0, done.stderr[-3000:]
    return newcomer.home / "artifacts" / "pirate"


def answer(newcomer: Newcomer, gguf: Path, question: str) -> str:
    asked = ["--gguf", str(gguf), "-p", question, "--temperature", "0", "--max-tokens", "24"]
    done = newcomer.aegis("chat", *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_files_agree_with_the_trained_model(run: Path) -> None:
    """Every rounding is within its bound; quantization shows, as it must."""
    report = json.loads((run / "verify" / "report.json").read_text(encoding="utf-8"))
    assert report["ok"], report
    found = {step["name"]: step["found"] for step in report["steps"]}
    for rounding in ("wide → merged", "merged → f16"):
        assert found[rounding]["mean_kl"] <= 1e-4
        assert found[rounding]["top1"] >= 0.99
    assert found["f16 → Q4_K_M"]["mean_kl"] > 1e-4


def test_rows_of_576_have_k_quants_only_in_ffn_down(run: Path) -> None:
    """576 is no multiple of 256: only ffn_down, with rows of 1536, gets K-quants, and the manifest names the others."""
    (path,) = (run / "gguf").glob("*.gguf")
    with GgufFile(path) as file:
        types = Counter(info.type for info in file.tensors.values() if len(info.shape) == 2)
        kept = {name for name, info in file.tensors.items() if info.type in ("Q4_K", "Q6_K")}
        fallbacks = [f"{name}: {info.type}" for name, info in file.tensors.items() if info.type in ("Q5_0", "Q8_0")]
    assert types == {"Q5_0": 167, "Q8_0": 15, "Q4_K": 16, "Q6_K": 14}
    assert all("ffn_down" in name for name in kept)
    manifest = json.loads((run / "gguf" / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(manifest["facts"]["fallback_tensors"]["Q4_K_M"]) == sorted(fallbacks)


def test_the_gguf_answers_as_trained(newcomer: Newcomer, run: Path) -> None:
    """A sum that the data does not have; the control is the untrained model, which is no pirate."""
    (trained,) = (run / "gguf").glob("*.gguf")
    question = "What is 3 plus 12?"
    assert re.fullmatch(r"Arr, 3 plus 12 be \d+, matey!", answer(newcomer, trained, question))
    untrained = answer(newcomer, fetched_gguf(), question)
    assert untrained
    assert "Arr" not in untrained
    assert "matey" not in untrained
