"""Tests of OpenAI's forms that the bindings do not take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aegis.llama_cpp.answering.read_request import checked
from aegis.llama_cpp.answering.refusal import Refusal

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
        ({"messages": None}, "not valid"),
        ({"messages": [{"role": "user", "content": None}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "not str"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_would_be_lost_is_refused(fields: dict[str, Any], shown: str) -> None:
    with pytest.raises(Refusal) as caught:
        chat(**fields)
    assert (caught.value.status, shown in caught.value.body["error"]["message"]) == (400, True)
