"""What encoding needs of a transformers tokenizer, as values that go to another process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aegis.llama_cpp import adds_begin_token

_NAMED = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class TokenizerParts:
    """A fast tokenizer taken apart.

    Attributes:
        backend: its tokenizer.json.
        template: its chat template, or None.
        tools_template: the one for chats with tools, which may be the same.
        no_default: why there is no template though there are several; empty otherwise.
        special_tokens: the variables of its template that are tokens.
        added: id, text, and whether it is special, of each added token.
        named: texts of its begin, end and padding tokens.
        begin: what it puts before a text by itself: its begin-of-text token, or nothing.
        end: its end-of-text token, or nothing.
        size: one more than its largest id.
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
        """Take a fast transformers tokenizer apart."""
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
        """The parts that `as_bytes` wrote."""
        fields, _, backend = written.partition(b"\n")
        return cls(backend.decode(), **json.loads(fields))

    def as_bytes(self) -> bytes:
        """A line of JSON, and the tokenizer.json, which may have 30 MB, as it is."""
        fields = {name: value for name, value in vars(self).items() if name != "backend"}
        return json.dumps(fields).encode() + b"\n" + self.backend.encode()
