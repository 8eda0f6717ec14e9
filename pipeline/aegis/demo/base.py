"""The embedded default's base: a tiny Phi-3 in a folder that looks like a downloaded one.

Built once per user and version: the folder's name has a hash of this package's source, of its data files and of
the settings, and the folder appears by one rename when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from aegis import progress
from aegis.demo.corpus import conversations, documents, style_rows
from aegis.demo.settings import DemoSettings
from aegis.demo.tokenizer import special_token_ids, train_tokenizer, write_tokenizer
from aegis.messages import phrase
from aegis.runs import disk

# As in Phi-3.5, so that what holds for the demo holds for the real base: the same attention factor, and
# llama.cpp's switch to the long factors above 4096 tokens of context. The demo's texts are far shorter.
_MAX_POSITIONS = 131072
_ORIGINAL_POSITIONS = 4096
_HELD_OUT_SEED = 1
_CARD = """---
license: mit
language: ja
---

# The demo base of AEGIS

A tiny Phi-3, pretrained in a minute on a corpus of plain Japanese that AEGIS generates. It can do nothing else.
"""


def ensure_demo_base(cache_dir: Path | None = None, settings: DemoSettings | None = None) -> Path:
    """Return the demo base's folder, and build it (about a minute on two cores) if it does not exist.

    Args:
        cache_dir: where bases are kept; by default AEGIS_CACHE_DIR or the user's cache folder.
        settings: `DemoSettings()` unless given.
    """
    settings = settings or DemoSettings()
    root = cache_dir or disk.cache_directory()
    folder = root / f"phi-3-demo-{demo_base_hash(settings)}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():  # another process has built it while this one waited
            return folder
        staging = folder.with_suffix(".building")
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed build
        staging.mkdir()
        try:
            _build(staging, settings)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def describe_demo_base(scratch: Path) -> Path:
    """The demo base's folder if it was built, else `scratch` with only its config.json."""
    settings = DemoSettings()
    folder = disk.cache_place() / f"phi-3-demo-{demo_base_hash(settings)}"
    if folder.is_dir():
        return folder
    (scratch / "config.json").write_text(json.dumps(base_config(settings)), encoding="utf-8")
    return scratch


def demo_base_hash(settings: DemoSettings) -> str:
    """16 hex digits over all that determines the base: this package's source, its data files and the settings."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    folder = Path(__file__).parent
    for source in sorted([*folder.glob("*.py"), *folder.glob("*.toml")]):
        # newlines as git's, so that a Windows checkout names the same base
        digest.update(source.name.encode() + source.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def base_config(settings: DemoSettings) -> dict[str, Any]:
    """config.json, written the way Phi-3.5's checkpoint is: `rope_scaling`, not `rope_parameters`."""
    ids = special_token_ids(settings.piece_count)
    pairs = settings.hidden_size // settings.head_count // 2
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": ids["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": settings.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": settings.intermediate_size,
        "max_position_embeddings": _MAX_POSITIONS,
        "model_type": "phi3",
        "num_attention_heads": settings.head_count,
        "num_hidden_layers": settings.layer_count,
        "num_key_value_heads": settings.head_count,
        "original_max_position_embeddings": _ORIGINAL_POSITIONS,
        "pad_token_id": ids["<|endoftext|>"],
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": _rope_factors(pairs, 64.0),
            "short_factor": _rope_factors(pairs, 2.75),
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": settings.vocab_size,
    }


def _rope_factors(count: int, last: float) -> list[float]:
    """Rising from 1 at the fastest rotating pair to `last` at the slowest, as LongRoPE's searched factors do."""
    return [round(last ** (index / (count - 1)), 4) for index in range(count)]


def _write_configs(folder: Path, settings: DemoSettings) -> None:
    """Write config.json, generation_config.json and the model card."""
    ids = special_token_ids(settings.piece_count)
    stops = [ids["<|end|>"], ids["<|assistant|>"], ids["<|endoftext|>"]]
    generation = {"bos_token_id": 1, "eos_token_id": stops, "pad_token_id": ids["<|endoftext|>"]}
    for name, content in (("config.json", base_config(settings)), ("generation_config.json", generation)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "README.md").write_text(_CARD, encoding="utf-8", newline="\n")


def _build(folder: Path, settings: DemoSettings) -> None:
    """Write the complete base into `folder`, an existing empty directory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoTokenizer, Phi3ForCausalLM

    from aegis.demo.pretrain import mean_loss, pretrain, unigram_loss

    texts = documents(settings.seed, settings.document_count)
    chats = conversations(settings.seed, settings.conversation_count)
    spoken = [message["content"] for chat in chats + style_rows(settings.seed) for message in chat]
    model_bytes = train_tokenizer(dict.fromkeys(texts + spoken), settings.piece_count)
    write_tokenizer(model_bytes, folder, max_length=_ORIGINAL_POSITIONS)

    _write_configs(folder, settings)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad_id = special_token_ids(settings.piece_count)["<|endoftext|>"]

    def encode(texts: list[str], chats: list[list[dict[str, str]]]) -> list[list[int]]:
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        sequences = [text + tokenizer.eos_token for text in texts] + rendered
        rows: list[list[int]] = tokenizer(sequences, add_special_tokens=False)["input_ids"]
        return rows

    rows = encode(texts, chats)
    # the weights are initialised from torch's global generator: a generator of our own would have no effect
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Phi3ForCausalLM(AutoConfig.from_pretrained(folder)).float()
    pretrain(model, rows, pad_id, settings)

    held_out = encode(documents(_HELD_OUT_SEED, 150, "held_out"), conversations(_HELD_OUT_SEED, 300, split="held_out"))
    loss = mean_loss(model, held_out, pad_id, settings.batch_tokens)
    unigram = unigram_loss(rows, held_out, settings.vocab_size)
    progress.say(phrase("demo.heldout_loss", loss=loss, unigram=unigram))

    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
