"""A base of the full size where its weights are not available: random weights, and an adapter and a soul on them.

The template is a folder with the base's config.json and tokenizer files and no weights. Everything but the values of
the weights is real: names, shapes, dtype, two shards, the index.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from aegis.model.adapter import load_adapter
from aegis.model.base import TOKENIZER_FILES, read_config
from aegis.model.lora_targets import attach_lora
from aegis.model.shard_writer import ShardWriter, write_index
from aegis.soul.gate import GOLDEN_RATIO
from aegis.soul.module import Soul
from aegis.training.checkpoint import write_trained

RANK, LORA_ALPHA = 16, 32


def copy_template(template: Path, folder: Path, layers: int | None) -> None:
    """Copy config and tokenizer files; the config names code of the model's own, as the real one does."""
    config = read_config(template)
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    config["auto_map"] = {"AutoConfig": "configuration_phi3.Phi3Config"}
    folder.mkdir()
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (template / name).is_file():
            shutil.copyfile(template / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def meta_model(folder: Path) -> nn.Module:
    """Build the model that the folder's config describes, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


def write_base(model: nn.Module, folder: Path, device: str = "cpu") -> None:
    """Write random weights of the model's shapes, drawn on `device`: 65 % of the bytes in the first shard."""
    tensors = list(model.state_dict().items())
    total = sum(tensor.nbytes for _, tensor in tensors)
    shards: list[list[tuple[str, Tensor]]] = [[], []]
    written = 0
    for name, tensor in tensors:
        written += tensor.nbytes
        shards[written > 0.65 * total].append((name, tensor))
    generator = torch.Generator(device).manual_seed(0)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        with ShardWriter(path, [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in shard]) as writer:
            for name, tensor in shard:
                for rows in tensor.split(4096):
                    values = torch.ones(rows.shape)
                    if rows.ndim > 1:
                        values = torch.randn(rows.shape, generator=generator, device=device) * 0.02
                    writer.write(values.bfloat16().cpu())
                weight_map[name] = path.name
    write_index(folder, weight_map, total)


def write_adapter_and_soul(model: nn.Module, targets: tuple[str, ...], folder: Path, base_hash: str) -> int:
    """Save a random adapter and a random soul as training does, and return the adapter's parameters."""
    peft_model = attach_lora(
        model, targets, rank=RANK, alpha=LORA_ALPHA, dropout=0.05, base_name="rehearsal", revision=None
    )
    generator = torch.Generator().manual_seed(1)
    for name, module in peft_model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" in name:
            # large enough that a base without it is no near miss: 40 % of the weights it is added to
            std = 0.1 if ".lora_A." in name else 0.01
            module.weight = nn.Parameter(torch.randn(module.weight.shape, generator=generator) * std)
    folder.mkdir()
    write_trained(
        folder,
        peft_model,
        Soul(peft_model.config.hidden_size, init="random", alpha=GOLDEN_RATIO, seed=2),
        500,
        base_hash,
    )
    return sum(pair.a.numel() + pair.b.numel() for pair in load_adapter(folder).updates.values())
