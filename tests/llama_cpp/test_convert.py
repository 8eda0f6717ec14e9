"""Tests of the real converter on a real folder: its output, and that a failure leaves no file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aegis.errors import EnvironmentFault, IntegrityError, ToolError, UsageError
from aegis.llama_cpp import GgufFile, Runtime, convert

from .conftest import MakeModel, NoFileAbove


def test_every_weight_is_in_the_gguf_bit_for_bit(model: Path, f16: Path) -> None:
    source = load_file(model / "model.safetensors")
    with GgufFile(f16) as file:
        assert file.tensors["output.weight"].type == "F16"
        pairs = {
            "output.weight": "lm_head.weight",
            "token_embd.weight": "model.embed_tokens.weight",
            "blk.1.attn_qkv.weight": "model.layers.1.self_attn.qkv_proj.weight",
            "blk.0.ffn_up.weight": "model.layers.0.mlp.gate_up_proj.weight",
            "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        }
        for name, original in pairs.items():
            np.testing.assert_array_equal(file.tensor(name), source[original])


def test_the_folders_settings_are_in_the_gguf(model: Path, f16: Path) -> None:
    tokenizer = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    factors = json.loads((model / "config.json").read_text(encoding="utf-8"))["rope_scaling"]
    with GgufFile(f16) as file:
        assert file.metadata["general.name"] == "tiny phi-3"
        assert file.metadata["general.architecture"] == "phi3"
        assert file.metadata["tokenizer.chat_template"] == tokenizer["chat_template"]
        assert file.metadata["tokenizer.ggml.add_bos_token"] is False
        np.testing.assert_allclose(file.tensor("rope_factors_long.weight"), factors["long_factor"], rtol=1e-6)
        np.testing.assert_allclose(file.tensor("rope_factors_short.weight"), factors["short_factor"], rtol=1e-6)
        assert file.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(16) / np.log(256)))


def test_a_dry_run_for_the_tokenizer_needs_no_weights(model: Path, f16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    convert(folder, tmp_path / "vocab.gguf", model_name="phi-3", vocab_only=True)
    with GgufFile(tmp_path / "vocab.gguf") as file:
        assert file.tensors == {}
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, list)
        assert tokens[:3] == ["<unk>", "<s>", "</s>"]
    messages = [{"role": "user", "content": "桃"}]
    with (
        Runtime(tmp_path / "vocab.gguf", n_ctx=64, vocab_only=True) as dry,
        Runtime(f16, n_ctx=64) as whole,
    ):
        assert dry.chat_tokens(messages) == whole.chat_tokens(messages)


NAMES = ["-x;$(touch pwned)", 'it\'s "quoted"', "日本語　全角", "{ftype} {0}", "a\nb", "..."]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_name_is_never_read_as_an_option(model: Path, tmp_path: Path) -> None:
    """One folder whose path has them all, nested, for both the model and the output."""
    folder = tmp_path.joinpath(*NAMES)
    folder.mkdir(parents=True)
    (folder / "-model").symlink_to(model)
    out = folder / "--outtype {ftype}; 出力.gguf"
    convert(folder / "-model", out, model_name="--vocab-only 日本 phi-3", vocab_only=True)
    with GgufFile(out) as file:
        assert file.metadata["general.name"] == "--vocab-only 日本 phi-3"
    assert {out.name, "-model"} == {path.name for path in folder.iterdir()}
    assert [path for path in (Path.cwd() / "pwned", tmp_path / "pwned") if path.exists()] == []


@pytest.mark.parametrize("quirk", ["unknown architecture", "odd tensor", "broken weights"])
def test_a_failed_conversion_shows_the_last_lines_and_keeps_the_old_file(
    quirk: str, make_model: MakeModel, tmp_path: Path
) -> None:
    extra = {"soul__rotation": np.ones((4, 4), np.float32)} if quirk == "odd tensor" else {}
    folder = make_model(tmp_path / "model", **extra)
    output = {
        "unknown architecture": "NoSuchModel",
        "odd tensor": "Can not map tensor",
        "broken weights": "Error",
    }
    if quirk == "unknown architecture":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}), "utf-8")
    elif quirk == "broken weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out" / "model.gguf"
    out.parent.mkdir()
    out.write_bytes(b"the old file")
    with pytest.raises(ToolError, match=output[quirk]) as caught:
        convert(folder, out, model_name="phi-3")
    assert len(caught.value.why.splitlines()) <= 21
    assert out.read_bytes() == b"the old file"
    assert [out] == list(out.parent.iterdir())


@pytest.mark.parametrize("where", ["module", "nested module", "config.json", "tokenizer_config.json"])
def test_a_folder_with_code_is_refused_and_its_code_does_not_run(
    where: str, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    if where.endswith(".json"):
        content = json.loads((folder / where).read_text(encoding="utf-8"))
        content["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
        (folder / where).write_text(json.dumps(content), encoding="utf-8")
    else:
        module = folder / ("evil.py" if where == "module" else "deep/evil.py")
        module.parent.mkdir(exist_ok=True)
        module.write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"auto_map|evil\.py"):
        convert(folder, tmp_path / "out.gguf", model_name="phi-3")
    assert [folder] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[" * 100_000, "5", "[]", "{"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_settings_that_are_no_object_are_refused(
    name: str, content: str, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(IntegrityError, match=name):
        convert(folder, tmp_path / "out.gguf", model_name="phi-3")


def test_bad_arguments_are_usage_errors(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        convert(tmp_path, tmp_path / "out.gguf", model_name="phi-3")
    assert caught.value.key == "convert.no_model_folder"
    with pytest.raises(EnvironmentFault, match="cannot write"):
        convert(model, tmp_path / "absent" / "out.gguf", model_name="phi-3")


def test_a_full_disk_is_the_environments_fault(model: Path, tmp_path: Path, no_file_above: NoFileAbove) -> None:
    with no_file_above(1 << 20), pytest.raises(EnvironmentFault, match="disk is full"):
        convert(model, tmp_path / "out.gguf", model_name="phi-3")
    assert list(tmp_path.iterdir()) == []
