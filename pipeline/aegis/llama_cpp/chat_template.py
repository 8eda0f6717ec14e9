"""A GGUF's own chat template, as llama-server applies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

Message = Mapping[str, str]
"""What a chat template of llama.cpp's is given: a role and a content."""


class ChatTemplate:
    """Renders a conversation; a `ChatFormatter` of the bindings, whose own never add a begin token.

    Raises:
        jinja2.TemplateError: the template cannot be compiled.
    """

    def __init__(self, llama: Any) -> None:
        """Take the template of a loaded `llama_cpp.Llama`; there may be none."""
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
            A `ChatFormatterResponse`: `prompt`, and as `added_special` whether the template wrote the begin token;
            otherwise the file's flag decides about one, as in llama-server. The model's end tokens are its stops.
        """
        response = self._formatter(**request)
        wrote_bos = bool(self._bos) and response.prompt.startswith(self._bos)
        return replace(response, added_special=wrote_bos, stop=None)
