"""Defects of a GGUF's metadata: each changes one key, in the f16 file or in the quantized one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegis.runs.run import Run
from tests.gguf_edit import Edit, GgufEdit
from tests.planted.finished import Defect, Finished, edit, f16_path, quantized_path

ALL = ("phi3", "qwen2", "llama")
BPE = ("qwen2", "llama")


def shifted(key: str, by: float = 1) -> Edit:
    def change(gguf: GgufEdit) -> None:
        gguf[_full(gguf, key)] += by

    return change


def replaced(key: str, value: Any) -> Edit:
    def change(gguf: GgufEdit) -> None:
        assert gguf[_full(gguf, key)] != value
        gguf[_full(gguf, key)] = value

    return change


def flipped(key: str) -> Edit:
    def change(gguf: GgufEdit) -> None:
        gguf[key] = not gguf[key]

    return change


def dropped(key: str) -> Edit:
    def change(gguf: GgufEdit) -> None:
        del gguf.keys[_full(gguf, key)]

    return change


def added(key: str, kind: int, value: Any) -> Edit:
    def change(gguf: GgufEdit) -> None:
        assert key not in gguf.keys
        gguf.keys[key] = [kind, value]

    return change


def swapped(key: str, one: int, other: int) -> Edit:
    def change(gguf: GgufEdit) -> None:
        items = gguf[key]
        assert items[one] != items[other]
        items[one], items[other] = items[other], items[one]

    return change


def template_changed(gguf: GgufEdit) -> None:
    gguf["tokenizer.chat_template"] = gguf["tokenizer.chat_template"].replace("assistant", "Assistant", 1)


def merge_removed(gguf: GgufEdit) -> None:
    gguf["tokenizer.ggml.merges"].pop(40)


def token_retold(gguf: GgufEdit) -> None:
    gguf["tokenizer.ggml.tokens"][300] += "x"


def type_of_a_token(gguf: GgufEdit) -> None:
    types = gguf["tokenizer.ggml.token_type"]
    types[300] = 4 if types[300] == 1 else 1


def eot_of_another_token(gguf: GgufEdit) -> None:
    gguf.keys["tokenizer.ggml.eot_token_id"] = [4, 7]


KEYS: tuple[tuple[str, Edit, tuple[str, ...]], ...] = (
    ("eos id", shifted("tokenizer.ggml.eos_token_id"), ALL),
    ("eot id", eot_of_another_token, ALL),
    ("bos id", shifted("tokenizer.ggml.bos_token_id"), ("phi3", "llama")),
    ("padding id", shifted("tokenizer.ggml.padding_token_id", -1), ALL),
    ("unknown id", shifted("tokenizer.ggml.unknown_token_id"), ("phi3",)),
    ("add_bos", flipped("tokenizer.ggml.add_bos_token"), ("phi3", "llama")),
    ("space prefix", added("tokenizer.ggml.add_space_prefix", 7, False), ALL),
    ("rope base", shifted("{}.rope.freq_base", 1000.0), ALL),
    ("context length", shifted("{}.context_length", 4096), ALL),
    ("rope original context", shifted("{}.rope.scaling.original_context_length", 64), ("phi3",)),
    ("rope attention factor", shifted("{}.rope.scaling.attn_factor", 0.01), ("phi3",)),
    ("norm epsilon", shifted("{}.attention.layer_norm_rms_epsilon", 1e-6), ALL),
    ("heads", shifted("{}.attention.head_count", 1), ALL),
    ("chat template", template_changed, ALL),
    ("chat template lost", dropped("tokenizer.chat_template"), ALL),
    ("a token's text", token_retold, ALL),
    ("two tokens' texts swapped", swapped("tokenizer.ggml.tokens", 290, 300), ALL),
    ("a token's type", type_of_a_token, ALL),
    ("two scores swapped", swapped("tokenizer.ggml.scores", 290, 300), ("phi3",)),
    ("a merge removed", merge_removed, BPE),
    ("two merges swapped", swapped("tokenizer.ggml.merges", 40, 41), BPE),
    ("pre-tokenizer name", replaced("tokenizer.ggml.pre", "gpt-2"), BPE),
    ("general.name", replaced("general.name", "another model"), ALL),
    ("a key more", added("general.author", 8, "nobody"), ALL),
)


def _full(gguf: GgufEdit, key: str) -> str:
    return key.format(gguf["general.architecture"])


def _in(path_of: Callable[[Run], Path], change: Edit) -> Callable[[Finished, Run], None]:
    return lambda _finished, run: edit(path_of(run), change)


KEY_DEFECTS = tuple(
    Defect(f"{name} in {where}", stage, _in(path_of, change), families)
    for name, change, families in KEYS
    for where, path_of, stage in (("Q4_K_M", quantized_path, "quantize"), ("f16", f16_path, "convert"))
)
