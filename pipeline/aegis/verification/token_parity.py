"""Compares token ids: the same text must have the same ids in transformers and in llama.cpp."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aegis.data.chat import Encoder, token_ids
from aegis.llama_cpp import Message, Runtime, chat_text, with_begin_token
from aegis.messages import Bilingual, bilingual
from aegis.verification.token_sequences import FULL_WIDTH_START, HARD_STRINGS, conversations_for


@dataclass(frozen=True)
class Parity:
    """The result of tokenizing the same texts in both programs.

    Attributes:
        compared: number of texts and chats.
        wrong: one line per text or chat whose ids differ.
        remarks: differences between the two programs that no conversion can mend.
    """

    compared: int
    wrong: tuple[Bilingual, ...]
    remarks: tuple[Bilingual, ...]


@dataclass(frozen=True)
class TokenIds:
    """The token ids of hard strings, some texts and some chats in transformers.

    Attributes:
        tokenizer: gave the ids.
        texts: pairs of a text and its ids.
        chats: pairs of a chat that the template accepts and its ids.
        full_width: the ids of FULL_WIDTH_START; None if there is no chat.
    """

    tokenizer: Any
    texts: tuple[tuple[str, list[int]], ...]
    chats: tuple[tuple[tuple[Message, ...], list[int]], ...]
    full_width: list[int] | None

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str] = ()) -> TokenIds:
        """Tokenize hard strings, `texts` and chats.

        Raises:
            DataError: the tokenizer's chat template does not finish or fails.
        """
        plain = (*HARD_STRINGS, *texts)
        chats = conversations_for(tokenizer)
        return cls(
            tokenizer,
            tuple(zip(plain, Encoder(tokenizer).token_ids(plain), strict=True)),
            tuple((chat, chat_ids(tokenizer, list(chat))) for chat in chats),
            chat_ids(tokenizer, list(FULL_WIDTH_START)) if chats else None,
        )


def compare_tokens(ours: TokenIds, runtime: Runtime) -> Parity:
    """Tokenize the same texts and chats in llama.cpp, and compare the ids.

    Raises:
        DataError: the file's chat template does not finish or fails.
    """
    wrong: list[Bilingual] = []
    composed = False
    for text, ids in ours.texts:
        theirs = runtime.tokenize(text, add_bos=True)
        if ids == theirs:
            continue
        if _is_composed_first(ours.tokenizer, text) and runtime.tokenize(_composed(text), add_bos=True) == ids:
            composed = True
            continue
        wrong.append(_first_difference(ids, theirs).after(f"{text[:30]!r}: "))
    for messages, ids in ours.chats:
        theirs = runtime.chat_tokens(list(messages))
        if ids != theirs:
            wrong.append(bilingual("parity.chat", messages=len(messages), difference=_first_difference(ids, theirs)))
    remarks = []
    if composed:
        remarks.append(bilingual("parity.composed"))
    if ours.full_width is not None and ours.full_width != runtime.chat_tokens(list(FULL_WIDTH_START)):
        remarks.append(bilingual("parity.full_width"))
    return Parity(len(ours.texts) + len(ours.chats), tuple(wrong), tuple(remarks))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _is_composed_first(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer composes a text (NFC) first; Qwen's does so, and llama.cpp never does."""
    composed = _composed(text)
    return composed != text and token_ids(tokenizer, text) == token_ids(tokenizer, composed)


def _first_difference(ours: list[int], theirs: list[int]) -> Bilingual:
    where = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return bilingual(
        "parity.difference",
        place=where,
        ours=ours[where : where + 4],
        theirs=theirs[where : where + 4],
        ours_count=len(ours),
        theirs_count=len(theirs),
    )


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids that a chat is trained with, up to the assistant's next turn.

    The template's text is tokenized without special tokens; a begin-of-text token comes first if the tokenizer adds
    one and the template has not written it.

    Raises:
        DataError: the template does not finish or fails.
    """
    text = chat_text(tokenizer, messages, prompt=True)
    return with_begin_token(tokenizer, token_ids(tokenizer, text, special=False))
