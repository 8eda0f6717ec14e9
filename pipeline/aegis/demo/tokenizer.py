"""The demo base's tokenizer: a small SentencePiece model with the special tokens and files of Phi-3.5.

llama.cpp reads tokenizer.model, transformers reads tokenizer.json. Both are written here from one trained
model, laid out as Phi-3.5's are, so that the two give the same ids and the demo meets the same traps as the
real base: tags that swallow the newline behind them, `</s>` that is not a special token, no `<s>` in front.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

# In Phi-3.5's order, directly after the SentencePiece pieces.
ADDED_TOKENS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
_SPACE = "▁"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"
)


def train_tokenizer(texts: Iterable[str], piece_count: int) -> bytes:
    """Train a byte-fallback BPE model and return it as the bytes of a tokenizer.model.

    Deterministic: one thread, every text used, in the order given.

    Args:
        texts: what to learn from; none may contain a newline.
        piece_count: pieces in the model, `<unk>`, `<s>`, `</s>` and 256 bytes included.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=piece_count,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        # words and endings, not whole phrases of the corpus
        max_sentencepiece_length=8,
        # identity, with the space in front: what Llama's family does and llama.cpp repeats
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(model: bytes, folder: Path, *, max_length: int) -> None:
    """Write the tokenizer files of a Phi-3.5 folder for a trained model."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = pieces.get_piece_size()
    added = {token: count + index for index, token in enumerate(ADDED_TOKENS)}
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8", newline="\n")
    _write_json(folder / "added_tokens.json", added)
    _write_json(folder / "special_tokens_map.json", _special_tokens_map())
    _write_json(folder / "tokenizer.json", _fast_tokenizer(pieces, added))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(added, max_length))


def special_token_ids(piece_count: int) -> dict[str, int]:
    """The id of every special token above a model of `piece_count` pieces."""
    return {token: piece_count + index for index, token in enumerate(ADDED_TOKENS)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")


def _flags(content: str) -> dict[str, Any]:
    """How Phi-3.5 treats a token: tags eat the white space on their right, `</s>` is not special."""
    plain = ("<unk>", "<s>", "<|endoftext|>")
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": content not in plain,
        "single_word": False,
        "special": content != "</s>",
    }


def _special_tokens_map() -> dict[str, Any]:
    roles = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    return {role: {k: v for k, v in _flags(token).items() if k != "special"} for role, token in roles.items()}


def _all_special(added: dict[str, int]) -> dict[int, dict[str, Any]]:
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **added}
    return {index: _flags(token) for token, index in ids.items()}


def _tokenizer_config(added: dict[str, int], max_length: int) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": {str(index): flags for index, flags in _all_special(added).items()},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "extra_special_tokens": {},
        "legacy": False,
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merge rules that give the same pieces as SentencePiece's BPE.

    It joins any two neighbours that make the best-ranked piece. As merge rules, that is every split of every piece
    into two pieces, in the order of the piece that they make.
    """
    merges = []
    for piece in vocab:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [split for split in splits if split[0] in vocab and split[1] in vocab]
        merges += sorted(known, key=lambda split: (vocab[split[0]], vocab[split[1]]))
    return merges


def _fast_tokenizer(pieces: sentencepiece.SentencePieceProcessor, added: dict[str, int]) -> dict[str, Any]:
    """tokenizer.json for the same pieces."""
    vocab = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **flags} for index, flags in _all_special(added).items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(merge) for merge in _merges(vocab)],
        },
    }
