"""Tests of the real quantizer: its mixture of types, and that a failure leaves no file."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from aegis.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from aegis.llama_cpp import QUANT_TYPES, GgufFile, convert, fallback_tensors, parse_quant, quantize

from .conftest import MakeModel, NoFileAbove


def test_the_type_numbers_are_those_of_llama_cpp() -> None:
    for name, number in QUANT_TYPES.items():
        constant = "LLAMA_FTYPE_ALL_F32" if name == "F32" else f"LLAMA_FTYPE_MOSTLY_{name}"
        assert number == getattr(llama_cpp, constant), name


@pytest.mark.parametrize("spelling", ["Q4_K_M", "q4_k_m", " q4-k-m "])
def test_a_quantization_is_found_in_any_spelling(spelling: str) -> None:
    assert parse_quant(spelling) == "Q4_K_M"


def test_an_unknown_quantization_names_the_nearest(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean Q4_K_M"):
        quantize(f16, tmp_path / "out.gguf", "Q4_KM")
    with pytest.raises(UsageError, match="unknown tensor type 'q7_7'"):
        quantize(f16, tmp_path / "out.gguf", "Q4_K_M", output_tensor_type="q7_7")
    assert list(tmp_path.iterdir()) == []


def test_q4_k_m_is_the_mixture_of_types(q4_k_m: Path) -> None:
    with GgufFile(q4_k_m) as file:
        types = {name: info.type for name, info in file.tensors.items()}
        assert file.metadata["general.file_type"] == QUANT_TYPES["Q4_K_M"]
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"
    assert {types["blk.0.attn_qkv.weight"], types["blk.1.attn_qkv.weight"]} == {"Q4_K", "Q6_K"}
    assert types["output_norm.weight"] == types["rope_factors_long.weight"] == "F32"


def test_the_head_can_be_kept_in_more_bits(f16: Path, tmp_path: Path) -> None:
    quantize(f16, tmp_path / "out.gguf", "Q4_K_M", threads=1, output_tensor_type="q8_0")
    with GgufFile(tmp_path / "out.gguf") as file:
        assert file.tensors["output.weight"].type == "Q8_0"
        assert file.tensors["token_embd.weight"].type == "Q4_K"
        assert fallback_tensors(file, "Q4_K_M", output_tensor_type="q8_0") == []
        assert [info.name for info in fallback_tensors(file, "Q4_K_M")] == ["output.weight"]


@pytest.mark.parametrize("quant", sorted(QUANT_TYPES))
def test_every_quantization_is_made_and_can_be_read(quant: str, f16: Path, tmp_path: Path) -> None:
    """None of the list needs an importance matrix, and values come back about as they were."""
    quantize(f16, tmp_path / "out.gguf", quant, threads=1)
    with GgufFile(f16) as before, GgufFile(tmp_path / "out.gguf") as after:
        name = "blk.0.ffn_up.weight"
        original = before.tensor(name).astype(np.float32)
        error = float(np.sqrt(np.mean((after.tensor(name).astype(np.float32) - original) ** 2) / np.mean(original**2)))
        assert fallback_tensors(after, quant) == []
    assert error < 0.35 if quant.startswith(("Q2", "Q3")) else error < 0.12
    assert error > 0 or quant in {"F16", "F32"}


def test_rows_that_are_no_multiple_of_256_are_reported(make_model: MakeModel, tmp_path: Path) -> None:
    """The control is every quantization of the 256-wide model above: there, nothing is."""
    folder = make_model(tmp_path / "model", hidden=288)
    convert(folder, tmp_path / "f16.gguf", model_name="phi-3")
    quantize(tmp_path / "f16.gguf", tmp_path / "q4.gguf", "Q4_K_M", threads=1)
    with GgufFile(tmp_path / "q4.gguf") as file:
        fallen = {info.name: info.type for info in fallback_tensors(file, "Q4_K_M")}
    assert fallen["output.weight"] == "Q8_0"
    assert fallen["token_embd.weight"] == "Q5_0"
    assert "blk.0.ffn_down.weight" not in fallen  # its rows are 512 wide


@pytest.mark.parametrize("damage", ["truncated", "nan", "not a gguf", "already quantized"])
def test_a_bad_source_is_a_tool_error_and_leaves_no_file(damage: str, f16: Path, q4_k_m: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in" / "source.gguf", tmp_path / "out" / "q4.gguf"
    source.parent.mkdir()
    out.parent.mkdir()
    data = bytearray((q4_k_m if damage == "already quantized" else f16).read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "not a gguf":
        data[:4] = b"PK\3\4"
    elif damage == "nan":
        with GgufFile(f16) as file:
            at = file.tensors["blk.0.ffn_up.weight"].offset_bytes
        data[at : at + 2] = np.float16("nan").tobytes()
    source.write_bytes(data)
    with pytest.raises(ToolError, match="quantizer failed") as caught:
        quantize(source, out, "Q5_K_M", threads=1)
    assert "failed to quantize" in caught.value.why
    assert list(out.parent.iterdir()) == []


def test_a_source_that_is_missing_or_is_the_output_is_a_usage_error(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no GGUF"):
        quantize(tmp_path / "absent.gguf", tmp_path / "out.gguf", "Q4_K_M")
    with pytest.raises(UsageError, match="onto itself"):
        quantize(f16, f16.parent / ".." / f16.parent.name / f16.name, "Q4_K_M")
    assert GgufFile(f16).tensors


def test_non_ascii_paths_work(f16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "出力　{x}"
    folder.mkdir()
    (folder / "元.gguf").write_bytes(f16.read_bytes())
    quantize(folder / "元.gguf", folder / "量子化.gguf", "Q8_0", threads=1)
    assert {"元.gguf", "量子化.gguf"} == {path.name for path in folder.iterdir()}


def test_a_full_disk_is_the_environments_fault(f16: Path, tmp_path: Path, no_file_above: NoFileAbove) -> None:
    with no_file_above(1 << 18), pytest.raises(EnvironmentFault, match="disk is full"):
        quantize(f16, tmp_path / "out.gguf", "Q4_K_M", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensor_is_an_error_that_names_it(f16: Path) -> None:
    with GgufFile(f16) as file, pytest.raises(IntegrityError, match=r"no tensor 'soul\.rotation'"):
        file.tensor("soul.rotation")
