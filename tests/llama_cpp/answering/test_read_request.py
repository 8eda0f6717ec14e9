"""Tests of a request's fields: OpenAI's forms that the bindings do not take, the defaults, and the bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aegis.chat.conversation import SamplingParams
from aegis.chat.transformers_model import _MIN_P, _TOP_K, _TOP_P
from aegis.llama_cpp.answering.read_request import checked
from aegis.llama_cpp.answering.refusal import Refusal

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ASKED = {"messages": [{"role": "user", "content": "春は"}]}


def chat(**fields: Any) -> Any:
    return checked(json.dumps(ASKED | fields).encode(), "chat")


def test_texts_in_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "春は"}, {"type": "text", "text": "？"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0]["content"] == "春は？"


def test_the_newer_name_of_max_tokens_is_taken() -> None:
    assert chat(max_completion_tokens=2).max_tokens == 2
    assert chat(max_completion_tokens=2, max_tokens=3).max_tokens == 3


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": None}, "no messages"),
        ({"messages": [{"role": "user", "content": None}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "not str"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "json_schema.schema"),
        ({"tool_choice": "required"}, "exactly one tool"),
        ({"tool_choice": "required", "tools": [TOOL, TOOL]}, "exactly one tool"),
        ({"tool_choice": "required", "tools": [{}]}, "not valid"),
    ],
)
def test_what_would_be_lost_is_refused(fields: dict[str, Any], shown: str) -> None:
    with pytest.raises(Refusal) as caught:
        chat(**fields)
    assert (caught.value.status, shown in caught.value.body["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ('"max_tokens": 0', "max_tokens"),
        ('"max_tokens": -5', "max_tokens"),
        ('"max_completion_tokens": 0', "max_tokens"),
        ('"temperature": -1', "temperature"),
        ('"temperature": NaN', "temperature"),
        ('"temperature": 1e999', "temperature"),
        ('"top_p": -Infinity', "top_p"),
        ('"repeat_penalty": Infinity', "repeat_penalty"),
        ('"logit_bias": {"5": 1e999}', "logit_bias"),
        ('"top_k": 1099511627776', "top_k"),
    ],
)
def test_a_number_out_of_its_bounds_is_refused_by_name(fields: str, name: str) -> None:
    for kind, asked in (("chat", json.dumps(ASKED)), ("completion", '{"prompt": "x"}')):
        with pytest.raises(Refusal) as caught:
            checked(f"{asked[:-1]}, {fields}}}".encode(), kind)  # type: ignore[arg-type]
        assert name in caught.value.body["error"]["message"]


def test_a_number_that_json_does_not_have_is_refused_in_a_schema_too() -> None:
    with pytest.raises(Refusal, match=r"^serving\.invalid$"):
        chat(response_format={"type": "json_object", "schema": {"minimum": float("nan")}})


def test_the_defaults_are_those_of_chat() -> None:
    """And of llama.cpp, which chat does not change: no penalty on repeated words."""
    for wanted in (chat(), checked(b'{"prompt": "x"}', "completion")):
        assert wanted.temperature == SamplingParams().temperature
        assert (wanted.top_k, wanted.top_p, wanted.min_p) == (_TOP_K, _TOP_P, _MIN_P)
        assert (wanted.repeat_penalty, wanted.frequency_penalty, wanted.presence_penalty) == (1, 0, 0)


def test_a_field_that_is_null_is_as_good_as_absent() -> None:
    names = ("frequency_penalty", "presence_penalty", "temperature", "top_p", "stream", "n", "max_completion_tokens")
    assert chat(**dict.fromkeys(names)).model_dump() == chat().model_dump()


def test_a_call_of_a_tool_needs_no_content() -> None:
    """As OpenAI's client sends its own answer back."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "refusal": None, "function_call": None, "tool_calls": [call]}
    tool = {"role": "tool", "tool_call_id": "1", "content": "3"}
    assert chat(messages=[*ASKED["messages"], asked, tool]).messages[1]["content"] == ""


def test_openais_json_schema_is_taken() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert wanted.response_format == {"type": "json_object", "schema": schema}


def test_the_only_tool_is_named_if_one_is_required() -> None:
    assert chat(tools=[TOOL], tool_choice="required").tool_choice["function"] == {"name": "f"}


def test_a_developers_message_is_the_systems_and_a_tool_needs_no_parameters() -> None:
    asked = chat(messages=[{"role": "developer", "content": "短く"}, *ASKED["messages"]])
    assert asked.messages[0] == {"role": "system", "content": "短く"}
    wanted = chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")
    assert wanted.tools[0]["function"]["parameters"] == {"type": "object", "properties": {}}
