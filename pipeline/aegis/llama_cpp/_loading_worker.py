"""Loads the vocabulary of an untrusted GGUF in llama.cpp, and turns a text into tokens and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

import llama_cpp

from aegis.llama_cpp.confined import Caller, Message

_TEXT = "Hello, 春は\n\n\t花。 👩‍👧 \x00<0x0A></s><|end|>".encode()


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Answer if llama.cpp has survived the file; one that it refuses is no concern of this process."""
    with (
        suppress(ValueError),
        closing(llama_cpp.Llama(message.fields["path"], vocab_only=True, verbose=False)) as model,
    ):
        for special in (True, False):
            model.detokenize(model.tokenize(_TEXT, special=special))
    yield Message({})
