"""Token-id parity: the same text must be the same ids in transformers and in llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegis.llama_cpp import Runtime
from aegis.proof.text import FULL_WIDTH_START, HARD_STRINGS, conversations_for


def disagreements(tokenizer: Any, runtime: Runtime, texts: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Tokenize hard strings, `texts` and chats on both sides.

    Returns:
        How many were compared, and a line for each on which the ids differ.
    """
    compared, wrong = 0, []
    for text in (*HARD_STRINGS, *texts):
        compared += 1
        ours, theirs = tokenizer(text).input_ids, runtime.tokenize(text, add_bos=True)
        if ours != theirs:
            wrong.append(f"{text[:30]!r}: {ours[:8]} in transformers, {theirs[:8]} in llama.cpp")
    for messages in conversations_for(tokenizer):
        compared += 1
        theirs = runtime.chat_tokens(list(messages))
        ours = chat_ids(tokenizer, list(messages))
        if ours != theirs:
            where = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
            )
            wrong.append(f"a chat of {len(messages)}: ids differ from token {where} on ({len(ours)} and {len(theirs)})")
    return compared, wrong


def strips_full_width_space(tokenizer: Any, runtime: Runtime) -> bool:
    """Whether both sides agree on a message that begins with U+3000 (see `FULL_WIDTH_START`)."""
    if not conversations_for(tokenizer):
        return True
    messages = list(FULL_WIDTH_START)
    return chat_ids(tokenizer, messages) == runtime.chat_tokens(messages)


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The ids a chat is trained with, up to where the assistant speaks.

    The template's text is tokenized as it stands; a begin-of-text token comes first if the tokenizer adds one by
    itself and the template has not written it.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    adds_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id, *ids] if adds_bos and ids[:1] != [tokenizer.bos_token_id] else ids
