"""Brings OpenAI's newer forms into those of the bindings: nulls, texts in parts, JSON schemas and tools."""

from __future__ import annotations

from typing import Any, Literal

from aegis.llama_cpp.answering.refusal import Refusal

Kind = Literal["chat", "completion"]


def as_bindings(fields: dict[str, Any], kind: Kind) -> None:
    """Change a request's fields in place; what is of a wrong type stays, for the check of the types.

    Raises:
        Refusal: a message has no content or other parts than texts, a structure of the answer cannot be kept, or
            probabilities are wanted, which are not kept.
    """
    _drop_nulls(fields)
    if "max_completion_tokens" in fields:
        fields.setdefault("max_tokens", fields.pop("max_completion_tokens"))
    if fields.get("logprobs"):
        raise Refusal(400, "serving.no_logprobs")
    if kind == "completion":
        return
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict):
            _with_content(message)
            if message.get("role") == "developer":  # OpenAI's later name
                message["role"] = "system"
    _with_schema(fields)
    _with_parameters(fields)
    _with_named_tool(fields)


def _drop_nulls(fields: dict[str, Any]) -> None:
    """Remove fields that are null, which are as good as absent in OpenAI's protocol."""
    for name in [name for name, value in fields.items() if value is None]:
        del fields[name]


def _with_content(message: dict[str, Any]) -> None:
    _drop_nulls(message)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_text_of(part) for part in content)
    elif content is None:
        if not (message.get("tool_calls") or message.get("function_call")):
            raise Refusal(400, "serving.no_content", role=str(message.get("role")))
        message["content"] = ""


def _text_of(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise Refusal(400, "serving.only_text", kind=str(kind)[:40])


def _with_schema(fields: dict[str, Any]) -> None:
    """Bring a `response_format` of OpenAI's type "json_schema" into the bindings' form."""
    wanted = fields.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return
    named = wanted.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise Refusal(400, "serving.no_schema")
    fields["response_format"] = {"type": "json_object", "schema": named["schema"]}


def _with_parameters(fields: dict[str, Any]) -> None:
    """Give a tool without `parameters` what OpenAI takes it to have: an object without members."""
    tools = fields.get("tools")
    for tool in tools if isinstance(tools, list) else []:
        if isinstance(tool, dict) and isinstance(function := tool.get("function"), dict):
            function.setdefault("parameters", {"type": "object", "properties": {}})


def _with_named_tool(fields: dict[str, Any]) -> None:
    """Name the tool of a `tool_choice` "required", for which the bindings would let the model write any text."""
    if fields.get("tool_choice") != "required":
        return
    tools = fields.get("tools")
    if not isinstance(tools, list) or len(tools) != 1:
        raise Refusal(400, "serving.which_tool")
    function = tools[0].get("function") if isinstance(tools[0], dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    fields["tool_choice"] = {"type": "function", "function": {"name": name}}
