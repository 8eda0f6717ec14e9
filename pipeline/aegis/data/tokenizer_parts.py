"""The parts of a transformers tokenizer that encoding needs, as values that can be sent to another process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aegis.llama_cpp import adds_begin_token

_NAMED = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class TokenizerParts:
    """The parts of a fast tokenizer.

    Attributes:
        backend: the text of tokenizer.json.
        template: the chat template, or None.
        tools_template: the template for chats with tools, which may be the same.
        no_default: the reason why none of several templates is used; "" otherwise.
        special_tokens: the variables of the template that are tokens.
        added: id, text, and whether it is special, of each added token.
        named: texts of the begin, end and padding tokens.
        begin: the begin-of-text token if the tokenizer adds it to a text, else empty.
        end: the end-of-text token, or empty.
        size: one more than the largest id.
    """

    backend: str
    template: str | None
    tools_template: str | None
    no_default: str
    special_tokens: dict[str, str]
    added: list[tuple[int, str, bool]]
    named: list[str]
    begin: list[int]
    end: list[int]
    size: int

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerParts:
        """Return the parts of a fast transformers tokenizer."""
        template, tools_template, no_default = None, None, ""
        if tokenizer.chat_template:
            try:
                template = tokenizer.get_chat_template()
                tools_template = tokenizer.get_chat_template(tools=[])
            except ValueError as error:  # several, and none of them the default
                no_default = str(error)
        return cls(
            tokenizer.backend_tokenizer.to_str(),
            template,
            tools_template,
            no_default,
            dict(tokenizer.special_tokens_map),
            [(number, token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items()],
            [str(token) for name in _NAMED if (token := getattr(tokenizer, name)) is not None],
            [tokenizer.bos_token_id] if adds_begin_token(tokenizer) else [],
            [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id],
            max(tokenizer.get_vocab().values()) + 1,
        )

    @classmethod
    def from_bytes(cls, written: bytes) -> TokenizerParts:
        """Return the parts that `as_bytes` wrote."""
        fields, _, backend = written.partition(b"\n")
        return cls(backend.decode(), **json.loads(fields))

    def as_bytes(self) -> bytes:
        """Return a line of JSON, followed by the unchanged tokenizer.json, which may have 30 MB."""
        fields = {name: value for name, value in vars(self).items() if name != "backend"}
        return json.dumps(fields).encode() + b"\n" + self.backend.encode()
