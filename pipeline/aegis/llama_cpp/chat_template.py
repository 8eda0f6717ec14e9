"""Applies a GGUF's own chat template as llama-server does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

Message = Mapping[str, str]
"""A message of a chat: `role` and `content`."""


class ChatTemplate:
    """Renders a conversation; unlike the bindings' own `ChatFormatter`s, it lets a begin token be added.

    Raises:
        jinja2.TemplateError: the template cannot be compiled.
    """

    def __init__(self, llama: Any) -> None:
        """Read the template of a loaded `llama_cpp.Llama`, if it has one."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        bos, eos = (
            llama._model.token_get_text(token) if token >= 0 else "" for token in (llama.token_bos(), llama.token_eos())
        )
        self._bos = bos
        template = llama.metadata.get("tokenizer.chat_template")
        self._formatter: Any = template and Jinja2ChatFormatter(template, eos_token=eos, bos_token=bos)

    def __bool__(self) -> bool:
        return bool(self._formatter)

    def __call__(self, **request: Any) -> Any:
        """Render `messages`.

        Returns:
            A `ChatFormatterResponse`: the `prompt`, and in `added_special` whether the template wrote the begin token;
            if it did not, the file's flag decides, as in llama-server. The stops are the model's end tokens.
        """
        response = self._formatter(**request)
        wrote_bos = bool(self._bos) and response.prompt.startswith(self._bos)
        return replace(response, added_special=wrote_bos, stop=None)
