"""Renders untrusted chat templates in a confined process, as transformers or as llama.cpp's bindings do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from aegis.llama_cpp.confined import Caller, Message

_TEXT_CHARS = 2000
_Render = Callable[[dict[str, Any]], str]


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Compile `source` and yield the result of each of `calls`: a text, or an exception's class and message.

    The first message, which has no `source`, only loads the compiler.
    """
    fields = message.fields
    if "source" not in fields:
        _compiled(fields["flavour"], "")
        return
    render = _compiled(fields["flavour"], fields["source"])
    yield Message({"rendered": [_outcome(render, call) for call in fields["calls"]]})


@lru_cache(maxsize=16)
def _compiled(flavour: str, source: str) -> _Render:
    return _as_transformers(source) if flavour == "transformers" else _as_llama_cpp(source)


def _as_transformers(source: str) -> _Render:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(source)
    return lambda call: str(template.render(**call))


def _as_llama_cpp(source: str) -> _Render:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def render(call: dict[str, Any]) -> str:
        formatter.bos_token, formatter.eos_token = call.pop("bos_token"), call.pop("eos_token")
        return str(formatter(**call).prompt)

    formatter = Jinja2ChatFormatter(source, eos_token="", bos_token="")
    return render


def _outcome(render: _Render, call: dict[str, Any]) -> Any:
    try:
        return render(call)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program and can raise anything
        return [type(error).__name__, str(error)[:_TEXT_CHARS]]
