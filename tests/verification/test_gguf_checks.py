"""Tests of the checks of a GGUF: a sound file passes, and every single change of it or its folder is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile, Runtime, convert, quantize
from aegis.model.base import load_tokenizer, read_config
from aegis.model.shards import ShardSet
from aegis.verification.gguf_checks import check_f16, check_quantized
from tests.conftest import MakeRandom, Recorder


@pytest.fixture
def folder(quick_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quick_base, tmp_path / "model"))


@pytest.fixture
def gguf(quick_gguf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(quick_gguf, tmp_path / "copy.gguf"))


def check(gguf: Path, folder: Path) -> None:
    check_f16(gguf, ShardSet.open(folder), read_config(folder), load_tokenizer(folder))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def differences(gguf: Path, folder: Path) -> list[str]:
    with pytest.raises(IntegrityError) as caught:
        check(gguf, folder)
    return caught.value.why.splitlines()


def rename(path: Path, old: bytes, new: bytes) -> None:
    """Give a tensor or key another name of the same length; the file stays valid."""
    assert len(old) == len(new)
    data, length = path.read_bytes(), len(old).to_bytes(8, "little")
    assert data.count(length + old) == 1
    path.write_bytes(data.replace(length + old, length + new))


def test_the_converters_output_passes(quick_gguf: Path, quick_base: Path) -> None:
    check(quick_gguf, quick_base)


def test_a_head_that_differs_in_one_bit_is_refused(quick_gguf: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].view(torch.int16)[-1, -1] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert differences(quick_gguf, folder) == ["output.weight is not lm_head.weight of the folder"]


def test_a_head_of_another_shape_is_refused(quick_gguf: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert differences(quick_gguf, folder) == ["output.weight is not lm_head.weight of the folder"]


def test_a_missing_head_is_refused(gguf: Path, quick_base: Path) -> None:
    rename(gguf, b"output.weight", b"outpux.weight")
    (found,) = differences(gguf, quick_base)
    assert found.startswith("output.weight is missing")
    assert "soul" in found


def test_a_value_beyond_float16_is_named(gguf: Path, quick_base: Path) -> None:
    """An Inf in any matrix; the largest finite value is none."""
    with GgufFile(gguf) as file:
        info = file.tensors["blk.0.ffn_down.weight"]
    data = bytearray(gguf.read_bytes())
    for bits, wrong in ((0x7BFF, False), (0xFBFF, False), (0x7C00, True), (0xFC00, True), (0x7E00, True)):
        data[info.offset_bytes + 6 : info.offset_bytes + 8] = np.uint16(bits).tobytes()
        gguf.write_bytes(data)
        if wrong:
            assert differences(gguf, quick_base) == ["blk.0.ffn_down.weight holds NaN or Inf in float16"]
        else:
            check(gguf, quick_base)


def test_another_chat_template_is_refused(quick_gguf: Path, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|END|>")
    with pytest.raises(IntegrityError, match="the chat template is not the folder's"):
        check_f16(quick_gguf, ShardSet.open(folder), read_config(folder), tokenizer)


def test_the_default_of_several_templates_counts(quick_gguf: Path, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    one = tokenizer.chat_template
    tokenizer.chat_template = {"default": one, "tool_use": one + "x"}
    check_f16(quick_gguf, ShardSet.open(folder), read_config(folder), tokenizer)
    tokenizer.chat_template = {"default": one + "x", "tool_use": one}
    with pytest.raises(IntegrityError, match="chat template"):
        check_f16(quick_gguf, ShardSet.open(folder), read_config(folder), tokenizer)


@pytest.mark.parametrize(
    ("key", "difference"),
    [
        ("long_factor", "rope_factors_long.weight is not the folder's long_factor"),
        ("short_factor", "rope_factors_short.weight is not the folder's short_factor"),
    ],
)
def test_other_rope_factors_are_refused(quick_gguf: Path, folder: Path, key: str, difference: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["rope_scaling"][key][-1] *= 1.0001

    edit(folder / "config.json", change)
    assert differences(quick_gguf, folder) == [difference]


def test_the_attention_factor_of_another_context_is_refused(quick_gguf: Path, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(max_position_embeddings=65536))
    (found,) = differences(quick_gguf, folder)
    assert found.startswith("rope.scaling.attn_factor is 1.19023")


def test_rope_parameters_in_transformers_5s_form_are_checked(quick_gguf: Path, folder: Path) -> None:
    """rope_parameters with the original length inside is the same model."""

    def change(config: dict[str, Any]) -> None:
        scaling = config.pop("rope_scaling")
        config["rope_parameters"] = scaling | {
            "rope_theta": config.pop("rope_theta"),
            "original_max_position_embeddings": config.pop("original_max_position_embeddings"),
        }

    config = read_config(folder)
    change(config)
    check_f16(quick_gguf, ShardSet.open(folder), config, load_tokenizer(folder))


def test_a_begin_token_that_llama_cpp_would_add_is_refused(gguf: Path, quick_base: Path) -> None:
    """Without the key, llama.cpp puts <s> before every prompt of a SentencePiece model; the folder does not."""
    with Runtime(gguf, n_ctx=64, threads=1, vocab_only=True) as runtime:
        before = runtime.tokenize("春の花", add_bos=True)
    rename(gguf, b"tokenizer.ggml.add_bos_token", b"tokenizer.ggml.add_bos_tokex")
    with Runtime(gguf, n_ctx=64, threads=1, vocab_only=True) as runtime:
        assert runtime.tokenize("春の花", add_bos=True) == [1, *before]
    (found,) = differences(gguf, quick_base)
    assert found == "llama.cpp adds bos: True; the folder's tokenizer does: False"


def test_all_differences_are_reported_at_once(gguf: Path, folder: Path) -> None:
    rename(gguf, b"output.weight", b"outpux.weight")
    rename(gguf, b"tokenizer.ggml.add_bos_token", b"tokenizer.ggml.add_bos_tokex")
    edit(folder / "config.json", lambda config: config["rope_scaling"].update(short_factor=[1.0] * 32))
    assert len(differences(gguf, folder)) == 3


def test_a_quantized_file_without_fallbacks_passes(quick_gguf: Path, tmp_path: Path, reporter: Recorder) -> None:
    out = tmp_path / "q.gguf"
    quantize(quick_gguf, out, "Q4_K_M", threads=1)
    assert check_quantized(out, "Q4_K_M", None) == []
    assert reporter.warned == []
    rename(out, b"output.weight", b"outpux.weight")
    rename(out, b"token_embd.weight", b"token_embx.weight")
    with pytest.raises(IntegrityError, match="has no LM head"):
        check_quantized(out, "Q4_K_M", None)


def test_tensors_that_were_not_quantized_without_a_reason_are_refused(quick_gguf: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        check_quantized(quick_gguf, "Q4_K_M", None)
    assert caught.value.key == "gguf.odd_type"


def test_fallbacks_of_rows_that_do_not_fit_are_reported(
    make_random: MakeRandom, tmp_path: Path, reporter: Recorder
) -> None:
    """A width of 288 is no whole number of 256-blocks: larger types are used, listed and warned of."""
    model = make_random("llama", hidden_size=288, num_hidden_layers=1, intermediate_size=512)
    convert(model, tmp_path / "f16.gguf", model_name="llama")
    quantize(tmp_path / "f16.gguf", tmp_path / "q.gguf", "Q4_K_M", threads=1)
    found = check_quantized(tmp_path / "q.gguf", "Q4_K_M", None)
    assert any(line.startswith("blk.0.attn_q.weight: Q5") for line in found)
    assert not any("ffn_down" in line for line in found)
    assert any("not divisible by 256" in text for text in reporter.warned)
