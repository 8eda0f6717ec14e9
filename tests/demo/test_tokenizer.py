"""Tests of the tokenizer: Phi-3.5's layout, and the same ids from SentencePiece, transformers and llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from aegis.demo.corpus import conversations, documents, style_rows
from aegis.demo.settings import DemoSettings
from aegis.demo.tokenizer import ADDED_TOKENS, train_tokenizer
from aegis.llama_cpp.convert import convert
from aegis.llama_cpp.runtime import Runtime

PLAIN = [
    "りんごは赤いです。",
    "猫は高い所に登り申す。",
    "拙者は小さき言葉のからくりでござる。",
    "Hello, world!",
    " leading space",
    "  two leading spaces",
    "trailing space ",
    "a  b   c    d",
    "全角　スペース",
    "　全角で始まる",
    "タブ\tと改行\nと\n\n空行",
    "\n改行で始まる",
    "\r\nWindows",
    "😀絵文字🎌👨‍👩‍👧",
    "がぎぐ (分解: か\u3099)",
    "髙﨑𠮷野家",
    "ｶﾀｶﾅと全角ＡＢＣ１２３",
    "12345 6.7e-8 二〇二四年",
    "▁underline▁ ▁",
    "<0x0A> は byte ではない",
    "</s> <s> <unk>",
    "العربية עברית",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u200b zero width",
    "「引用」『二重』（丸）",
    "",
    " ",
    "。",
]
TAGGED = [
    "<|user|>\nりんごは何色ですか。<|end|>\n<|assistant|>\n",
    "<|user|> space<|end|> <|assistant|>   three",
    "<|user|>\n\n\n三つ<|end|>\n\n<|assistant|>\n 一つ",
    "<|end|>\t<|end|> \n<|end|>",
    "前<|endoftext|>\n後",
    "前<|placeholder1|>\n後<|placeholder6|> 後",
    "<|system|>\n短く。<|end|>\n<|user|>\n😀<|end|>\n<|assistant|>\nうむ。<|end|>\n<|endoftext|>",
]


@pytest.fixture(scope="module")
def tokenizer(quick_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(quick_base)


@pytest.fixture(scope="module")
def runtime(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    gguf = tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    convert(quick_base, gguf, model_name="demo phi-3", vocab_only=True)
    with Runtime(gguf, n_ctx=64, vocab_only=True) as runtime:
        yield runtime


def chats() -> list[Any]:
    return [*conversations(5, 8), *conversations(6, 8, "samurai")]


def test_transformers_and_llama_cpp_give_the_same_ids(tokenizer: Any, runtime: Runtime) -> None:
    """Over plain texts, tags, whole chats, and texts of both styles: more than forty in all."""
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats()]
    asked = [tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True) for chat in chats()]
    texts = [*PLAIN, *TAGGED, *rendered, *asked, *documents(7, 20)]
    assert len(texts) >= 40
    wrong = [text for text in texts if tokenizer(text)["input_ids"] != runtime.tokenize(text, add_bos=True)]
    assert wrong == []


def test_the_family_name_is_what_makes_tags_eat_newlines(quick_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    """The control: under a name without "phi-3" the same file gives other ids."""
    convert(quick_base, tmp_path / "other.gguf", model_name="demo", vocab_only=True)
    with Runtime(tmp_path / "other.gguf", n_ctx=64, vocab_only=True) as other:
        assert tokenizer(TAGGED[0])["input_ids"] != other.tokenize(TAGGED[0], add_bos=True)


def test_a_full_width_space_behind_a_tag_is_where_the_two_differ(tokenizer: Any, runtime: Runtime) -> None:
    """transformers strips all Unicode space behind a tag, llama.cpp the ASCII kind. So it is with Phi-3.5 itself."""
    text = "<|user|>\n　全角で始まる"
    ours, theirs = tokenizer(text)["input_ids"], runtime.tokenize(text, add_bos=True)
    assert ours == tokenizer("<|user|>全角で始まる")["input_ids"]
    assert "　" in tokenizer.decode(theirs)


def test_transformers_and_sentencepiece_give_the_same_ids(quick_base: Path, tokenizer: Any) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(quick_base / "tokenizer.model"))
    texts = [text for text in PLAIN if text and "s>" not in text and "unk" not in text]
    texts += [message["content"] for chat in style_rows(count=200) for message in chat]
    wrong = [text for text in texts if tokenizer(text)["input_ids"] != pieces.encode(text)]
    assert wrong == []


def test_decoding_the_ids_gives_the_text(tokenizer: Any) -> None:
    for text in PLAIN:
        if "s>" not in text and "▁" not in text:
            assert text == tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)


def test_training_is_deterministic() -> None:
    texts = documents(0, 100)
    assert train_tokenizer(texts, 900) == train_tokenizer(texts, 900)


def test_a_chat_is_written_as_phi_writes_it(tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "短く答えてください。"},
        {"role": "user", "content": "空は何色ですか。"},
    ]
    answered = [*chat, {"role": "assistant", "content": "青いです。"}]
    head = "<|system|>\n短く答えてください。<|end|>\n<|user|>\n空は何色ですか。<|end|>\n"
    assert f"{head}<|assistant|>\n" == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert f"{head}<|assistant|>\n青いです。<|end|>\n<|endoftext|>" == tokenizer.apply_chat_template(
        answered, tokenize=False
    )


def test_the_files_are_laid_out_as_phi_35s(quick_base: Path, real: Callable[[str], Any]) -> None:
    """Its own tokenizer.json and chat template: the same rules, and the same added tokens after fewer pieces."""
    phi, demo = real("Phi-3.5"), AutoTokenizer.from_pretrained(quick_base)
    folders = (quick_base, Path(phi.name_or_path))
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) for folder in folders)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        assert theirs[part] == ours[part]
    below = DemoSettings.quick().piece_count - 32000
    shifted = [token | {"id": token["id"] + (below if token["id"] >= 32000 else 0)} for token in theirs["added_tokens"]]
    assert shifted == ours["added_tokens"]
    assert tuple(token["content"] for token in shifted if token["id"] >= 32000 + below) == ADDED_TOKENS

    chat = conversations(0, 1)[0]
    for generate in (True, False):
        assert phi.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=generate
        ) == demo.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
