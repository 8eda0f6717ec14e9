"""A GGUF of the Llama family with a byte-level tokenizer, written as a folder that transformers loads.

It undoes what llama.cpp's converter did: every weight is dequantized, the rows of the query and key projections go
back to the order of transformers, and tokenizer.json is rebuilt from the tokens and merges in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from aegis.llama_cpp import GgufFile

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # token types of llama.cpp
_SPECIAL_NAMES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # ours: llama.cpp's


def write_folder(gguf: GgufFile, folder: Path) -> None:
    """Fill a folder: weights in bfloat16, config.json, generation_config.json and the tokenizer's files.

    Raises:
        ValueError: the file is no Llama with a byte-level tokenizer, or has a tensor that a Llama has not.
    """
    meta = gguf.metadata
    found = (meta.get("general.architecture"), meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre"))
    if found != ("llama", "gpt2", "smollm"):
        raise ValueError(f"{gguf.path} is {found}; only ('llama', 'gpt2', 'smollm') is known here")
    save_file(weights(gguf), folder / "model.safetensors", metadata={"format": "pt"})
    for name, document in {
        "config.json": config(meta, tied="output.weight" not in gguf.tensors),
        "generation_config.json": {f"{token}_token_id": _id(meta, token) for token in ("bos", "eos", "pad")},
        "tokenizer.json": tokenizer(meta),
        "tokenizer_config.json": tokenizer_config(meta),
    }.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def weights(gguf: GgufFile) -> dict[str, torch.Tensor]:
    """Every tensor by its name in transformers, dequantized in float32 and rounded once to bfloat16.

    Raises:
        ValueError: a tensor has no place in a Llama.
    """
    heads = {
        "attn_q": int(gguf.metadata["llama.attention.head_count"]),  # type: ignore[arg-type]
        "attn_k": int(gguf.metadata["llama.attention.head_count_kv"]),  # type: ignore[arg-type]
    }
    found = {}
    for name in gguf.tensors:
        part = re.fullmatch(r"(?:blk\.(?P<layer>\d+)\.)?(?P<kind>\w+)\.weight", name)
        known = _IN_LAYER if part and part["layer"] else _OUTSIDE
        if part is None or part["kind"] not in known:
            raise ValueError(f"{gguf.path}: {name} has no place in a Llama")
        values = np.array(gguf.tensor(name), np.float32)
        if part["kind"] in heads:
            values = halves(values, heads[part["kind"]])
        prefix = f"model.layers.{part['layer']}." if part["layer"] else ""
        found[f"{prefix}{known[part['kind']]}.weight"] = torch.from_numpy(values).bfloat16()
    return found


def halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The rows of a query or key projection, (heads · head size, hidden), in transformers' order.

    The rotary embedding turns pairs of rows. llama.cpp's Llama keeps the two of a pair side by side; transformers
    keeps the first of every pair in the first half of a head, and the second in the second half.
    """
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config(meta: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM."""
    hidden, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _id(meta, "bos"),
        "eos_token_id": _id(meta, "eos"),
        "pad_token_id": _id(meta, "pad"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        # float32 in the file: 9.9999997e-06 is written 1e-05
        "rms_norm_eps": float(str(np.float32(meta["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
    }


def tokenizer(meta: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that takes every digit by itself, as llama.cpp's "smollm" does."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": kind == _CONTROL}
        for number, (text, kind) in enumerate(_tokens(meta))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: number for number, (text, _) in enumerate(_tokens(meta))},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens and the chat template of the file."""
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "add_bos_token": meta["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": False,
        **{f"{name}_token": tokens[_id(meta, name)] for name in _SPECIAL_NAMES},
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        # takes tokenizer.json as it stands: a class of one family would put its own splitting in its place
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _tokens(meta: Mapping[str, Any]) -> list[tuple[str, int]]:
    return list(zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], strict=True))


def _id(meta: Mapping[str, Any], name: str) -> int:
    return int(meta[f"tokenizer.ggml.{_SPECIAL_NAMES[name]}_token_id"])
