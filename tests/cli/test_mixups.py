"""Tests of what is given in the place of something else: a file for a run, weights for a soul, a matrix for a text."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from aegis.config.resolve import resolve
from aegis.config.train_settings import TrainConfig
from aegis.errors import DataError, UsageError
from aegis.runs.run import Run
from tests.cli.test_app import Aegis, aegis

__all__ = ["aegis"]


@pytest.fixture
def place(quick_base: Path, finished_run: Run, tmp_path: Path) -> Path:
    """A folder with a base, a finished run, rows, and files that are no text."""
    shutil.copytree(quick_base, tmp_path / "base")
    shutil.copytree(finished_run.root, tmp_path / "run")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "x", "output": "y"}\n' * 20)
    (tmp_path / "sjis.txt").write_bytes("春の海".encode("cp932"))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "shown"),
    [
        ("chat --gguf run/gguf --prompt x", 2, "is a folder"),
        ("serve --gguf run/gguf", 2, "is a folder"),
        ("chat --run rows.jsonl --prompt x", 2, "use --gguf"),
        ("chat --run base --prompt x", 2, "no run"),
        ("report --run run/gguf", 2, "no run"),
        ("card --run run/adapter", 2, "no run"),
        ("verify run/adapter/adapter_model.safetensors", 2, "verify its folder"),
        ("verify base/model.safetensors", 2, "verify its folder"),
        ("plan --base-model base --dataset rows.jsonl --text run", 2, "is a folder"),
        ("plan --base-model base --dataset rows.jsonl --text sjis.txt", 2, "UTF-8"),
        ("plan --base-model base --dataset rows.jsonl --imatrix rows.jsonl", 5, "rows.jsonl"),
        ("plan --base-model base --revision main --dataset rows.jsonl", 2, "no revision"),
        ("plan --base-model base --dataset rows.jsonl --max-length 100000000", 2, "max_length"),
        ("push a/b/c --run run --dry-run", 2, "not the name of a repository"),
        ("push https://huggingface.co/a/b --run run --dry-run", 2, "not the name of a repository"),
        ("push 日本/語 --run run --dry-run", 2, "not the name of a repository"),
    ],
)
def test_the_mistake_is_named(aegis: Aegis, place: Path, line: str, code: int, shown: str) -> None:
    ended = aegis(*line.split())
    assert (ended.code, shown in ended.err) == (code, True), ended.err


@pytest.mark.parametrize("broken", ["pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"])
def test_a_plan_refuses_a_base_whose_weights_cannot_be_used(aegis: Aegis, place: Path, broken: str) -> None:
    (place / "base" / "model.safetensors").unlink()
    (place / "base" / broken).write_text("version https://git-lfs.github.com/spec/v1\n" if "model.s" in broken else "x")
    ended = aegis("plan", "--base-model", "base", "--dataset", "rows.jsonl")
    assert ended.code == 5, ended.err


def test_a_plan_warns_of_a_folder_without_weights(aegis: Aegis, place: Path) -> None:
    (place / "base" / "model.safetensors").unlink()
    ended = aegis("plan", "--base-model", "base", "--dataset", "rows.jsonl")
    assert (ended.code, "has no weights" in ended.err) == (0, True), ended.err


def test_a_pointer_of_git_lfs_is_named_with_its_cure(aegis: Aegis, place: Path) -> None:
    (place / "base" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    ended = aegis("plan", "--base-model", "base", "--dataset", "rows.jsonl")
    assert (ended.code, "git lfs pull" in ended.err) == (5, True), ended.err


def test_a_base_without_a_tokenizer_is_refused_in_a_sentence(aegis: Aegis, place: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (place / "base" / name).unlink(missing_ok=True)
    ended = aegis("plan", "--base-model", "base", "--dataset", "rows.jsonl")
    assert ended.code != 0
    assert "has no tokenizer" in ended.err
    assert "Traceback" not in ended.err


def test_a_base_that_was_moved_is_named_with_its_run(aegis: Aegis, place: Path) -> None:
    manifest = place / "run" / "adapter" / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["facts"]["base_model"] = str(place / "gone")
    manifest.write_text(json.dumps(document), encoding="utf-8")
    ended = aegis("chat", "--live", "--run", "run", "--prompt", "x")
    assert (ended.code, "any more" in ended.err) == (2, True), ended.err


def test_typed_text_that_is_not_utf_8_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from aegis.cli.dialogue import Dialogue

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x8c\xa2\n"), "utf-8", errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        Dialogue([]).run()
    assert caught.value.key == "chat.not_utf8"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('base_model = "x"\n', "config.outside_a_table"),
        ("[[train]]\n", "config.no_table"),
        ("train = 3\n", "config.no_table"),
        (f"[train]\nmax_steps = {'9' * 5000}\n", "config.cannot_read_toml"),
        ('[train]\ndataset = "C:\\Users\\me"\n', "config.cannot_read_toml"),
    ],
)
def test_a_config_file_that_cannot_be_read_says_why(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, file=tmp_path / "x.toml")
    assert caught.value.key == key


def test_a_config_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes("# 設定\n".encode("cp932"))
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, file=tmp_path / "x.toml")
    assert caught.value.key == "config.not_utf8"
