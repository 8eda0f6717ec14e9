"""Makes a base and a GGUF of full size in no space: right headers, and holes for the values."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np

from aegis.llama_cpp import convert
from aegis.model.shards import SINGLE

HIDDEN, INTERMEDIATE = 3072, 8192  # those of Phi-3.5-mini
_ALIGNMENT = 32


def sparse_base(tiny: Path, folder: Path, size_bytes: int) -> Path:
    """Make a Phi-3 of about this size, in bfloat16, with the tokenizer of the tiny one."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("rope_scaling", "rope_parameters", "head_dim", "dtype"):
        config.pop(name, None)
    layer = sum(math.prod(shape) for _, shape in _layer(0))
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": size_bytes // 2 // layer,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    head = (config["vocab_size"], HIDDEN)
    shapes = {"model.embed_tokens.weight": head, "lm_head.weight": head, "model.norm.weight": (HIDDEN,)}
    for number in range(config["num_hidden_layers"]):
        shapes |= dict(_layer(number))
    at, header = 0, {}
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / SINGLE, 8 + len(text) + at)
    return folder


def _layer(number: int) -> list[tuple[str, tuple[int, ...]]]:
    start = f"model.layers.{number}."
    return [
        (f"{start}self_attn.qkv_proj.weight", (3 * HIDDEN, HIDDEN)),
        (f"{start}self_attn.o_proj.weight", (HIDDEN, HIDDEN)),
        (f"{start}mlp.gate_up_proj.weight", (2 * INTERMEDIATE, HIDDEN)),
        (f"{start}mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)),
        (f"{start}input_layernorm.weight", (HIDDEN,)),
        (f"{start}post_attention_layernorm.weight", (HIDDEN,)),
    ]


def sparse_gguf(base: Path, path: Path) -> Path:
    """Make the f16 GGUF of a base of `sparse_base`: its keys by the converter, its tensors holes."""
    keys = path.with_name("keys.gguf")
    convert(base, keys, model_name="phi-3", vocab_only=True)
    writer = gguf.GGUFWriter(path, "phi3")
    for field in gguf.GGUFReader(keys).fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    total = 0
    for name, shape in _tensors(config["num_hidden_layers"], config["vocab_size"]):
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        size = math.prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size)
        total += -(-size // _ALIGNMENT) * _ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // _ALIGNMENT) * _ALIGNMENT
    os.truncate(path, start + total)
    return path


def _tensors(layers: int, vocabulary: int) -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (vocabulary, HIDDEN)),
        ("output.weight", (vocabulary, HIDDEN)),
        ("output_norm.weight", (HIDDEN,)),
    ]
    for number in range(layers):
        start = f"blk.{number}."
        found += [
            (f"{start}attn_qkv.weight", (3 * HIDDEN, HIDDEN)),
            (f"{start}attn_output.weight", (HIDDEN, HIDDEN)),
            (f"{start}ffn_up.weight", (2 * INTERMEDIATE, HIDDEN)),
            (f"{start}ffn_down.weight", (HIDDEN, INTERMEDIATE)),
            (f"{start}attn_norm.weight", (HIDDEN,)),
            (f"{start}ffn_norm.weight", (HIDDEN,)),
        ]
    return found
