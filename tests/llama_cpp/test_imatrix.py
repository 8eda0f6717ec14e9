"""Tests of the importance matrix of the real tool: its numbers, its model, and its effect on a quantizer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aegis.errors import IntegrityError, ToolError, UsageError
from aegis.llama_cpp import (
    IMATRIX_TYPES,
    GgufFile,
    Runtime,
    convert,
    fallback_tensors,
    measure_importance,
    quantize,
    refuse_foreign,
)
from aegis.llama_cpp.imatrix import _LINE_END, _Progress, read_importance

from .conftest import HIDDEN, INTERMEDIATE, LAYERS, LINES, MakeModel

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="imatrix is not compiled there"),
    pytest.mark.usefixtures("forked_tools"),
]

CHUNK = 64
TEXT = LINES * 3
OTHER = "She sells sea shells by the sea shore. " * 20


def made(folder: Path, gguf: Path, text: str = TEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calibration.txt").write_text(text, encoding="utf-8")
    measure_importance(gguf, folder / "calibration.txt", folder / "imatrix.gguf", chunk_tokens=CHUNK, threads=1)
    return folder / "imatrix.gguf"


@pytest.fixture(scope="module")
def imatrix(f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("imatrix"), f16)


def first_inputs(f16: Path, text: str) -> NDArray[np.float64]:
    """Return the mean squares of the first attention's inputs: the normed embeddings of complete chunks."""
    with Runtime(f16, n_ctx=64, vocab_only=True) as runtime:
        tokens = runtime.tokenize(text.rstrip("\n"), add_bos=True)
    tokens = tokens[: len(tokens) // CHUNK * CHUNK]
    with GgufFile(f16) as file:
        embedded = file.tensor("token_embd.weight").astype(np.float64)[tokens]
        norm = file.tensor("blk.0.attn_norm.weight").astype(np.float64)
    normed = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + 1e-5) * norm
    means: NDArray[np.float64] = (normed**2).mean(0)
    return means


def test_the_matrix_has_the_mean_squares_of_the_inputs(imatrix: Path, f16: Path) -> None:
    """Worked out again for the first weight, by numpy from the embeddings; another text's are far off."""
    found = read_importance(imatrix)["blk.0.attn_qkv.weight"]
    np.testing.assert_allclose(found, first_inputs(f16, TEXT), rtol=2e-3)
    off = np.abs(found / first_inputs(f16, OTHER) - 1)
    assert np.median(off) > 0.1


def test_the_matrix_has_every_weight_of_the_blocks_and_not_the_head(imatrix: Path) -> None:
    columns = {"attn_qkv": HIDDEN, "attn_output": HIDDEN, "ffn_up": HIDDEN, "ffn_down": INTERMEDIATE}
    wanted = {f"blk.{layer}.{name}.weight": size for layer in range(LAYERS) for name, size in columns.items()}
    assert {name: len(values) for name, values in read_importance(imatrix).items()} == wanted


def test_the_matrix_depends_only_on_the_text(
    imatrix: Path, f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the folder, which it does not tell, nor on variables that the tool would take settings from."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "128")
    monkeypatch.setenv("LLAMA_ARG_MODEL", "no-such-model.gguf")
    again = made(tmp_path / "日本 語", f16)
    assert again.read_bytes() == imatrix.read_bytes()
    assert made(tmp_path / "other", f16, OTHER).read_bytes() != imatrix.read_bytes()
    with GgufFile(again) as file:
        assert file.metadata["imatrix.datasets"] == ["calibration.txt"]
        assert file.metadata["imatrix.chunk_size"] == CHUNK
    assert {path.name for path in again.parent.iterdir()} == {"calibration.txt", "imatrix.gguf"}


def test_quantization_with_the_matrix_rounds_differently(
    imatrix: Path, f16: Path, q4_k_m: Path, tmp_path: Path
) -> None:
    """The blocks' weights change, of the same types; the head and the embeddings, which it leaves out, do not."""
    quantize(f16, tmp_path / "out.gguf", "Q4_K_M", threads=1, imatrix=imatrix)
    with GgufFile(q4_k_m) as plain, GgufFile(tmp_path / "out.gguf") as weighted, GgufFile(f16) as original:
        for name, info in plain.tensors.items():
            assert weighted.tensors[name].type == info.type
            same = np.array_equal(plain.tensor(name), weighted.tensor(name))
            quantized = name.startswith("blk.") and len(info.shape) > 1
            assert same is not quantized, name
        # and in the columns that matter it rounds better, which is what it is for
        name = "blk.1.ffn_down.weight"
        weight = read_importance(imatrix)[name]
        errors = [
            float((weight * (file.tensor(name) - original.tensor(name).astype(np.float32)) ** 2).sum())
            for file in (plain, weighted)
        ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("quant", sorted(IMATRIX_TYPES))
def test_the_smallest_types_need_the_matrix(
    quant: str, imatrix: Path, f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused without one, as llama.cpp itself does."""
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=f"{quant} needs an importance matrix"):
        quantize(f16, out, quant, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["aegis.llama_cpp.quantize"], "IMATRIX_TYPES", {})
        with pytest.raises(ToolError, match=r"(?i)imatrix|importance matrix"):
            quantize(f16, out, quant, threads=1)
    assert not out.exists()
    quantize(f16, out, quant, threads=1, imatrix=imatrix)
    with GgufFile(out) as file:
        assert fallback_tensors(file, quant) == []
        assert file.metadata["general.file_type"] == IMATRIX_TYPES[quant]
    assert out.stat().st_size < f16.stat().st_size / 3


def test_another_models_matrix_is_refused(imatrix: Path, make_model: MakeModel, tmp_path: Path) -> None:
    """Of other sizes or names; the control is the model it was made from."""
    folder = make_model(tmp_path / "model", hidden=288)
    convert(folder, tmp_path / "wide.gguf", model_name="phi-3")
    with pytest.raises(IntegrityError, match="of another model") as caught:
        quantize(tmp_path / "wide.gguf", tmp_path / "out.gguf", "Q4_K_M", threads=1, imatrix=imatrix)
    assert "256 columns, the model's has 288" in caught.value.why
    assert not (tmp_path / "out.gguf").exists()


def test_a_matrix_made_from_the_model_is_accepted(imatrix: Path, f16: Path) -> None:
    refuse_foreign(imatrix, f16)


def test_a_file_that_is_no_importance_matrix_is_refused(f16: Path, imatrix: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_importance(f16)
    assert caught.value.key == "imatrix.other_type"
    (tmp_path / "cut.gguf").write_bytes(imatrix.read_bytes()[:-100])
    with pytest.raises(IntegrityError) as caught:
        read_importance(tmp_path / "cut.gguf")
    assert caught.value.key == "gguf_file.not_whole"
    with pytest.raises(UsageError, match="cannot read"):
        quantize(f16, tmp_path / "out.gguf", "Q4_K_M", imatrix=tmp_path / "absent.gguf")
    with GgufFile(imatrix) as file:
        at = file.tensors["blk.0.ffn_up.weight.in_sum2"].offset_bytes
    for value in ("nan", "-1"):
        data = bytearray(imatrix.read_bytes())
        data[at : at + 4] = np.float32(value).tobytes()
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            read_importance(tmp_path / "bad.gguf")
        assert caught.value.key == "imatrix.no_sums"


def test_a_text_that_is_too_short_is_a_tool_error_and_leaves_no_file(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="imatrix failed") as caught:
        made(tmp_path / "short", f16, "春は桜。")
    assert f"at least {2 * CHUNK} tokens" in caught.value.why
    assert [path.name for path in (tmp_path / "short").iterdir()] == ["calibration.txt"]


def test_progress_is_read_from_unfinished_lines() -> None:
    shown = b"imatrix: computing over 4 chunks, n_ctx=64\n[1]7.1234,[2]6.5678,"
    read: Callable[[str], float | None] = _Progress()
    found = [read(line.decode()) for line in re.split(_LINE_END, shown)]
    assert found == [0.0, 0.25, 0.5, None]
