"""Tests of the most frequent mistakes: each gets an answer of at most three lines with the fix."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis import progress
from aegis.cli import app
from aegis.messages import LANGUAGES, VARIABLE

MISTAKES = {
    # words
    "trian": (2, "'train'"),
    "help mrege": (2, "'merge'"),
    "train --preset demo --max-step 3": (2, "--max-steps"),
    "train --preset demo --max-steps": (2, "aegis train --help"),
    "train --preset demo extra words": (2, "aegis train --help"),
    "push": (2, "OWNER/NAME"),
    "push samurai": (2, "owner/name"),
    "train --preset demo --web --dry-run": (2, "--dry-run"),
    # values
    "train --preset demo --max-steps many": (2, {"en": "a whole number", "ja": "整数"}),
    "train --preset demo --max-steps 0": (2, {"en": "at least 1", "ja": "1 以上"}),
    "train --preset demo --sample-steps often": (
        2,
        {"en": "a whole number from 1 to 999,999,999", "ja": "999,999,999 以下の整数"},
    ),
    "train --preset demo --learning-rate fast": (2, {"en": "a number", "ja": "数値"}),
    "train --preset demo --load-in 8bit": (2, "'4bit'"),
    "train --preset demo --columns question": (2, "question=instruction"),
    "serve --port 99999": (2, "65,535"),
    "data --preset demo --rows 99999999999999999999": (2, "10,000"),
    "report --seconds 1e300": (2, "1,000,000"),
    "plan --preset demo --lora-r 1e999": (2, {"en": "whole number", "ja": "整数"}),
    "serve --context 2000000": (2, "1,048,576"),
    "chat --seed 4294967296": (2, "2,147,483,647"),
    "chat --temperature inf": (2, "100"),
    "train --preset borea --dataset chats.jsonl": (2, "borea-12gb"),
    "run --preset demo --quant Q4KM": (2, "Q4_K_M"),
    "run --preset demo --quant IQ2_XS": (2, "--imatrix"),
    "run --preset demo --head-quant q9": (2, "q8_0"),
    "run --preset demo --keep-weight 0 --max-kept-kl 0.1": (2, "--keep-weight"),
    "quantize-study --variants plain,imatirx": (2, "imatrix+head-q8_0"),
    # what is missing
    "train": (2, "--preset borea-12gb --dataset mine.jsonl"),
    "run --dataset chats.jsonl": (2, "--preset demo"),
    "merge --base-model x": (2, "--adapter"),
    "export-gguf --model folder": (2, "--out"),
    "init --base-model demo": (2, "--dataset"),
    "init --preset borea": (2, "borea-12gb"),
    "chat --gguf model.gguf --compare base": (2, "--run"),
    # files
    "run --preset demo --dataset absent.jsonl": (2, "owner/name"),
    "run --preset demo --dataset notes.docx": (2, ".jsonl"),
    "run --preset demo --dataset folder": (2, ".jsonl"),
    "run --preset demo --dataset nothing.jsonl": (4, {"en": "at least one row", "ja": "1 行以上"}),
    "run --base-model ./nowhere --dataset chats.jsonl": (2, "config.json"),
    "run --base-model folder --dataset chats.jsonl": (2, "config.json"),
    "run --preset demo --text absent.txt": (2, "absent.txt"),
    "train --preset demo --config absent.toml": (2, "aegis init"),
    "train --preset demo --config key.toml": (2, "'max_steps'"),
    "train --preset demo --config table.toml": (2, "'train'"),
    "verify absent.gguf": (2, "absent.gguf"),
    "chat --gguf absent.gguf": (2, "absent.gguf"),
    "serve --gguf absent.gguf": (2, "absent.gguf"),
    "serve --gguf model.gguf --beside absent.gguf": (2, "absent.gguf"),
    "import-soul absent.pt --out soul.safetensors": (2, "absent.pt"),
    # runs
    "merge --run nowhere": (2, "artifacts/begun"),
    "watch --run nowhere": (2, "artifacts/begun"),
    "merge": (5, "aegis train --run artifacts/begun"),
    "export-gguf --run begun": (5, "aegis train --run artifacts/begun"),
    "verify": (5, "aegis train --run artifacts/begun"),
    "chat": (5, "aegis train --run artifacts/begun"),
    "train --resume": (2, {"en": "start without --resume", "ja": "--resume なしで"}),
    "report": (2, "aegis train --resume --run artifacts/begun"),
    "card": (2, "aegis export-gguf --run artifacts/begun"),
    "push owner/name": (2, "aegis export-gguf --run artifacts/begun"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a started run, data, and files of many kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEGIS_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "artifacts" / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    for name, text in {
        "chats.jsonl": '{"instruction": "a", "output": "b"}\n',
        "nothing.jsonl": "",
        "notes.docx": "x",
        "model.gguf": "GGUF",
        "key.toml": "[train]\nmax_step = 3\n",
        "table.toml": "[trian]\nmax_steps = 3\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    yield tmp_path
    progress.install(progress.SilentReporter())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("line", MISTAKES)
def test_each_mistake_is_answered_with_its_fix(
    line: str, language: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In at most three lines of the reader's language, on stderr, and with the exit code of its kind."""
    monkeypatch.setenv(VARIABLE, language)
    monkeypatch.setattr(sys, "argv", ["aegis", *shlex.split(line)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    shown = capsys.readouterr()
    code, cure = MISTAKES[line]
    assert (ended.value.code, shown.out) == (code, ""), shown
    answer = shown.err[shown.err.index("aegis: ") :].replace("\\", "/")
    assert len(answer.splitlines()) <= 3, answer
    assert (cure if isinstance(cure, str) else cure[language]) in answer
    assert "Traceback" not in shown.err


def test_the_table_has_the_promised_number_of_mistakes() -> None:
    assert len(MISTAKES) >= 30
