"""Defects of the merged folder: of its weights, and of the files beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import torch
from safetensors.torch import load_file
from torch import Tensor

from aegis.model.adapter import load_adapter
from aegis.runs.manifest import file_sha256
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul, save_soul
from aegis.soul.fold import fold_head
from tests.planted.finished import (
    SHARD,
    Defect,
    Finished,
    earlier_step,
    edit_json,
    edit_tensors,
    put,
    reseal,
    reseal_merged,
)  # fmt: skip

Tensors = dict[str, Tensor]
HEAD, EMBEDDINGS, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
O_PROJ, DOWN = "model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"


def base_tensors(finished: Finished) -> Tensors:
    tensors = load_file(finished.base / SHARD)
    tensors.setdefault(HEAD, tensors[EMBEDDINGS])
    return tensors


def tensors(change: Callable[[Tensors, Finished], None]) -> Callable[[Finished, Run], None]:
    return lambda finished, run: edit_tensors(run, lambda found: change(found, finished))


def scaled(name: str) -> Callable[[Tensors, Finished], None]:
    def change(found: Tensors, _finished: Finished) -> None:
        found[name] = (found[name].float() * 1.01).half()

    return change


def noise(found: Tensors, _finished: Finished) -> None:
    wide = found[DOWN].float()
    random = torch.randn(wide.shape, generator=torch.Generator().manual_seed(5))
    found[DOWN] = (wide + 0.01 * wide.std() * random).half()


def one_unit(name: str) -> Callable[[Tensors, Finished], None]:
    def change(found: Tensors, _finished: Finished) -> None:
        row = found[name][7]
        at = int(row.abs().argmax())
        row[at] = torch.nextafter(row[at], torch.tensor(torch.inf, dtype=row.dtype))

    return change


def lora_in_bfloat16(found: Tensors, finished: Finished) -> None:
    for name, update in load_adapter(finished.run.adapter).updates.items():
        weight = base_tensors(finished)[name].bfloat16()
        found[name] = (weight + (update.b.bfloat16() @ update.a.bfloat16()) * update.scale).half()


def with_head(head: Callable[[Tensor, Finished], Tensor]) -> Callable[[Tensors, Finished], None]:
    def change(found: Tensors, finished: Finished) -> None:
        found[HEAD] = head(base_tensors(finished)[HEAD], finished).half()

    return change


def transposed(head: Tensor, finished: Finished) -> Tensor:
    soul = load_soul(finished.run.adapter / SOUL_FILE)
    return fold_head(head, soul.rotation.mT, soul.gate)


def wrong_gate(head: Tensor, finished: Finished) -> Tensor:
    soul = load_soul(finished.run.adapter / SOUL_FILE)
    return fold_head(head, soul.rotation, soul.gate + 0.001)


def earlier_soul(head: Tensor, finished: Finished) -> Tensor:
    soul = load_soul(earlier_step(finished.run) / SOUL_FILE)
    return fold_head(head, soul.rotation, soul.gate)


def in_bfloat16(head: Tensor, finished: Finished) -> Tensor:
    soul = load_soul(finished.run.adapter / SOUL_FILE)
    return fold_head(head, soul.rotation, soul.gate).bfloat16()


def adapter_dropped(found: Tensors, finished: Finished) -> None:
    for name in load_adapter(finished.run.adapter).updates:
        found[name] = base_tensors(finished)[name].half()


def one_layer_lost(found: Tensors, finished: Finished) -> None:
    found[O_PROJ] = base_tensors(finished)[O_PROJ].half()


def half_the_scale(found: Tensors, finished: Finished) -> None:
    for name in load_adapter(finished.run.adapter).updates:
        found[name] = ((base_tensors(finished)[name].float() + found[name].float()) / 2).half()


def rows_swapped(found: Tensors, _finished: Finished) -> None:
    found[EMBEDDINGS][[300, 301]] = found[EMBEDDINGS][[301, 300]]


def row_zeroed(found: Tensors, _finished: Finished) -> None:
    found[EMBEDDINGS][300] = 0


def lost(found: Tensors, _finished: Finished) -> None:
    del found["model.layers.0.input_layernorm.weight"]


def added(found: Tensors, _finished: Finished) -> None:
    found["soul.alpha"] = torch.tensor([1.618])


def in_float32(found: Tensors, _finished: Finished) -> None:
    found[NORM] = found[NORM].float()


def in_config(**changes: object) -> Callable[[Finished, Run], None]:
    return beside("config.json", lambda document: document.update(changes))


def beside(name: str, change: Callable[[dict], None]) -> Callable[[Finished, Run], None]:  # type: ignore[type-arg]
    def plant(_finished: Finished, run: Run) -> None:
        edit_json(run.merged / name, change)
        reseal_merged(run)

    return plant


def text_changed(name: str, old: str, new: str) -> Callable[[Finished, Run], None]:
    def plant(_finished: Finished, run: Run) -> None:
        text = (run.merged / name).read_text(encoding="utf-8")
        assert old in text
        put(run.merged / name, text.replace(old, new, 1))
        reseal_merged(run)

    return plant


def file_added(name: str, content: str) -> Callable[[Finished, Run], None]:
    def plant(_finished: Finished, run: Run) -> None:
        put(run.merged / name, content)
        reseal_merged(run)

    return plant


def file_lost(name: str) -> Callable[[Finished, Run], None]:
    def plant(_finished: Finished, run: Run) -> None:
        (run.merged / name).unlink()
        reseal_merged(run)

    return plant


def token_removed(document: dict) -> None:  # type: ignore[type-arg]
    document["added_tokens"].pop()


def pieces_swapped(document: dict) -> None:  # type: ignore[type-arg]
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        one, other = list(vocabulary)[290:292]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    else:
        vocabulary[290], vocabulary[291] = vocabulary[291], vocabulary[290]


def merge_removed(document: dict) -> None:  # type: ignore[type-arg]
    document["model"]["merges"].pop(40)


def other_soul(finished: Finished, run: Run) -> None:
    """Change the soul's g, and make every manifest fit."""
    path = run.adapter / SOUL_FILE
    soul = load_soul(path)
    path.unlink()
    save_soul(path, replace(soul, alpha=soul.alpha - 0.3))
    reseal(run.adapter)
    reseal(run.merged, soul=file_sha256(path))


def other_adapter(finished: Finished, run: Run) -> None:
    """Replace the adapter by an earlier step's."""
    path = run.adapter / "adapter_model.safetensors"
    put(path, (earlier_step(run) / path.name).read_bytes())
    reseal(run.adapter)
    reseal(run.merged, adapter=file_sha256(path))


def origin_changed(_finished: Finished, run: Run) -> None:
    def change(document: dict) -> None:  # type: ignore[type-arg]
        document["facts"]["origin"]["base"] = "somebody/else"

    edit_json(run.merged / "manifest.json", change)
    card = (run.merged / "README.md").read_text(encoding="utf-8")
    put(run.merged / "README.md", card.replace("adapter merged", "adapter, merged"))
    reseal_merged(run)


MERGED_DEFECTS = (
    Defect("o_proj × 1.01", "merge", tensors(scaled(O_PROJ))),
    Defect("final norm × 1.01", "merge", tensors(scaled(NORM))),
    Defect("1 % of noise on a down_proj", "merge", tensors(noise)),
    Defect("one embedding by one unit", "merge", tensors(one_unit(EMBEDDINGS))),
    Defect("one value of the head by one unit", "merge", tensors(one_unit(HEAD))),
    Defect("one value of an adapted weight by one unit", "merge", tensors(one_unit(O_PROJ))),
    Defect("LoRA added in bfloat16", "merge", tensors(lora_in_bfloat16)),
    Defect("folded, rounded to bfloat16 on the way", "merge", tensors(with_head(in_bfloat16))),
    Defect("unfolded head", "merge", tensors(with_head(lambda head, _finished: head))),
    Defect("transposed R", "merge", tensors(with_head(transposed))),
    Defect("g off by a thousandth", "merge", tensors(with_head(wrong_gate))),
    Defect("soul of an earlier step", "merge", tensors(with_head(earlier_soul))),
    Defect("adapter dropped", "merge", tensors(adapter_dropped)),
    Defect("one LoRA layer lost", "merge", tensors(one_layer_lost)),
    Defect("adapter at half its scale", "merge", tensors(half_the_scale)),
    Defect("two embeddings swapped", "merge", tensors(rows_swapped)),
    Defect("an embedding that the sample lacks zeroed", "merge", tensors(row_zeroed)),
    Defect("a tensor lost", "merge", tensors(lost)),
    Defect("a tensor more", "merge", tensors(added)),
    Defect("a norm in float32", "merge", tensors(in_float32)),
    Defect("soul with another g, all hashes fit", "merge", other_soul),
    Defect("adapter of an earlier step, all hashes fit", "merge", other_adapter),
    Defect("tied flag left", "merge", in_config(tie_word_embeddings=True)),
    Defect("rope theta", "merge", in_config(rope_theta=20000.0)),
    Defect("rope scaling lost", "merge", in_config(rope_scaling=None), ("phi3",)),
    Defect("context length in config", "merge", in_config(max_position_embeddings=8192)),
    Defect("dtype in config", "merge", in_config(dtype="bfloat16", torch_dtype="bfloat16")),
    Defect("code named in config", "merge", in_config(auto_map={"AutoModel": "x.Y"})),
    Defect("an added token lost", "merge", beside("tokenizer.json", token_removed)),
    Defect("two pieces swapped in tokenizer.json", "merge", beside("tokenizer.json", pieces_swapped)),
    Defect("a merge removed from tokenizer.json", "merge", beside("tokenizer.json", merge_removed), ("qwen2", "llama")),
    Defect("chat template", "merge", text_changed("chat_template.jinja", "assistant", "Assistant")),
    Defect(
        "generation_config's list of ends cut",
        "merge",
        beside("generation_config.json", lambda document: document["eos_token_id"].pop(0)),
        ("phi3",),
    ),
    Defect("generation_config lost", "merge", file_lost("generation_config.json"), ("phi3",)),
    Defect("tokenizer.model lost", "merge", file_lost("tokenizer.model"), ("phi3",)),
    Defect("code beside the weights", "merge", file_added("modeling.py", "print(1)\n")),
    Defect("stray weights", "merge", file_added("notes.json", json.dumps({"by": "nobody"}))),
    Defect("card of merged/", "merge", text_changed("README.md", "adapter merged", "adapter, merged")),
    Defect("origin in the manifest", "merge", origin_changed),
)
