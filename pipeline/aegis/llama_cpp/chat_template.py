"""Applies a GGUF's own chat template as llama-server does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aegis.errors import DataError
from aegis.llama_cpp.rendering import Raised, render

Message = Mapping[str, str]
"""A message of a chat: `role` and `content`."""

_PREFIX = "tokenizer.chat_template"


def refuse_unusable_templates(metadata: Mapping[str, Any]) -> None:
    """Compile a file's templates in a confined process, because the bindings compile every one of them in this process.

    jinja computes constants while it compiles, such as 3**(10**8).

    Raises:
        DataError: a template cannot be compiled, does not finish, or takes too much memory.
    """
    for name, source in metadata.items():
        if name.startswith(_PREFIX) and isinstance(source, str):
            render("llama.cpp", source, [])


class ChatTemplate:
    """Renders a conversation; unlike the bindings' `ChatFormatter`s, it allows llama.cpp to add a begin token."""

    def __init__(self, llama: Any) -> None:
        """Read the template of a loaded `llama_cpp.Llama`, if it has one."""
        self._bos, self._eos = (
            llama._model.token_get_text(token) if token >= 0 else "" for token in (llama.token_bos(), llama.token_eos())
        )
        self._source = llama.metadata.get(_PREFIX)

    def __bool__(self) -> bool:
        return bool(self._source)

    def __call__(self, **request: Any) -> Any:
        """Render `messages`.

        Returns:
            A `ChatFormatterResponse`: the `prompt`, and in `added_special` whether the template wrote the begin token;
            if it did not, the file's flag decides, as in llama-server. The stops are the model's end tokens.

        Raises:
            DataError: the template refuses the conversation, does not finish, or takes too much memory.
        """
        from llama_cpp.llama_chat_format import ChatFormatterResponse

        tokens = {"bos_token": self._bos, "eos_token": self._eos}
        (prompt,) = render("llama.cpp", self._source, [{**request, **tokens}])
        if isinstance(prompt, Raised):
            raise DataError("runtime.template_refuses", error=f"{prompt.kind}: {prompt.text}")
        wrote_bos = bool(self._bos) and prompt.startswith(self._bos)
        return ChatFormatterResponse(prompt=prompt, added_special=wrote_bos)
