"""Fixtures: a tiny Phi-3 with random weights, and the GGUF that the real llama.cpp makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file

from aegis.llama_cpp import convert, quantize

HIDDEN, INTERMEDIATE, LAYERS, HEADS, PIECES = 256, 512, 2, 4, 420
ADDED = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
VOCABULARY = 448

LINES = """
むかしむかし、あるところに、おじいさんとおばあさんがいました。
おじいさんは山へ芝刈りに、おばあさんは川へ洗濯に行きました。
川のむこうから、大きな桃が流れてきました。
春は桜、夏は花火、秋は紅葉、冬は雪がきれいです。
きょうは朝から雨が降っていて、空は暗いままでした。
駅まで歩いて十五分、そこから電車で二十分かかります。
The quick brown fox jumps over the lazy dog.
She sells sea shells by the sea shore, and he buys them.
"""

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

MakeModel = Callable[..., Path]
NoFileAbove = Callable[[int], AbstractContextManager[None]]


def tokenizer_model() -> bytes:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in LINES.split("\n") if line),
        model_writer=trained,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
    )
    return trained.getvalue()


def config(hidden: int = HIDDEN) -> dict[str, object]:
    half_head = hidden // HEADS // 2
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + 0.01 * i for i in range(half_head)],
            "long_factor": [1.0 + 0.5 * i for i in range(half_head)],
        },
        "sliding_window": 8192,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": PIECES,
        "pad_token_id": PIECES,
        "dtype": "float16",
    }


def weights(hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1618)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY, hidden),
        "model.norm.weight": np.ones(hidden, np.float16),
        "lm_head.weight": 8 * matrix(VOCABULARY, hidden),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": np.ones(hidden, np.float16),
            prefix + "post_attention_layernorm.weight": np.ones(hidden, np.float16),
            prefix + "self_attn.qkv_proj.weight": matrix(3 * hidden, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, hidden),
            prefix + "mlp.gate_up_proj.weight": matrix(2 * INTERMEDIATE, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, INTERMEDIATE),
        }
    return tensors


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Write a model folder; the hidden size and single tensors can be changed."""
    vocabulary = tokenizer_model()

    def make(directory: Path, *, hidden: int = HIDDEN, **replaced: np.ndarray) -> Path:
        directory.mkdir(parents=True)
        special = {0: "<unk>", 1: "<s>", 2: "</s>", **dict(enumerate(ADDED, PIECES))}
        tokenizer_config = {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": False,
            "added_tokens_decoder": {str(i): {"content": t, "special": True} for i, t in special.items()},
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "chat_template": TEMPLATE,
        }
        (directory / "config.json").write_text(json.dumps(config(hidden)), encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
        (directory / "tokenizer.model").write_bytes(vocabulary)
        tensors = weights(hidden) | {name.replace("__", "."): value for name, value in replaced.items()}
        save_file(tensors, directory / "model.safetensors")
        return directory

    return make


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def f16(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    out = tmp_path_factory.mktemp("f16") / "tiny-f16.gguf"
    convert(model, out, model_name="tiny phi-3")
    return out


@pytest.fixture(scope="session")
def q4_k_m(tmp_path_factory: pytest.TempPathFactory, f16: Path) -> Path:
    out = tmp_path_factory.mktemp("q4") / "tiny-Q4_K_M.gguf"
    quantize(f16, out, "Q4_K_M", threads=2)
    return out


@pytest.fixture
def no_file_above() -> NoFileAbove:
    """Limit any file's size for this process and its children: a larger write is cut short, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits are POSIX")

    @contextmanager
    def limit(size_bytes: int) -> Iterator[None]:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    return limit
