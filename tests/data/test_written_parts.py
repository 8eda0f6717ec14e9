"""Tests that a part of a chat that the template leaves out is detected, also if the chat has its text elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis.data.chat import Encoder
from aegis.data.formats import records
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
PLAIN = HEAD + "{{ m.content or '' }}" + TAIL
CALLING = HEAD + "{{ m.content or '' }}" + CALLS + TAIL
NAMES_ONLY = HEAD + "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}" + TAIL
NO_TOOL = CALLING.replace("{{ m.content or '' }}", "{{ '' if m.role == 'tool' else m.content or '' }}")
NO_SYSTEM = HEAD + "{{ '' if m.role == 'system' else m.content }}" + TAIL
DECLARED = HEAD + (
    "{% for c in m.tool_calls or [] if c.function.name != 'search' %}{{ raise_exception('not a tool') }}{% endfor %}"
    "{{ m.content or '' }}" + CALLS + TAIL
)
USER = {"role": "user", "content": "東京の天気を検索して"}
CATS = {"role": "user", "content": "Please search the web for cats"}
ANSWER = {"role": "assistant", "content": "It is 21 degrees"}
RESULT = {"role": "tool", "content": "21"}


def calls(name: str, **arguments: object) -> dict[str, object]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


SEARCH = calls("検索", 場所="東京")


@pytest.fixture
def refused(byte_level: Callable[..., Any], tmp_path: Path) -> Callable[..., list[str]]:
    """Return the reasons for which a chat is refused with a template."""

    def reasons(template: str, *messages: dict[str, object]) -> list[str]:
        path, rejects = tmp_path / "data.jsonl", Rejects("x")
        path.write_text(json.dumps({"messages": messages}, ensure_ascii=False) + "\n", encoding="utf-8")
        tokenizer = byte_level(template, ["<|im_start|>", "<|im_end|>"])
        Encoder(tokenizer).encode(list(records(open_source(path), rejects)), rejects)
        return [reason for _, reason in rejects.listed]

    return reasons


@pytest.mark.parametrize(
    ("template", "messages", "part"),
    [
        (PLAIN, [USER, SEARCH], "tool_calls"),
        (PLAIN, [CATS, calls("search", query="cats")], "tool_calls"),
        (PLAIN, [CATS, calls("search")], "tool_calls"),
        (NAMES_ONLY, [CATS, calls("search", query="cats")], "tool_calls"),
        (NO_TOOL, [USER, SEARCH, RESULT, ANSWER], "the tool's message"),
        (NO_SYSTEM, [{"role": "system", "content": "天気"}, USER, ANSWER], "the system's message"),
        (CALLING, [USER, {**ANSWER, "reasoning_content": "天気"}], "reasoning_content"),
        (PLAIN, [USER, {**SEARCH, "reasoning_content": "天気", "content": "東京"}], "reasoning_content"),
    ],
)
def test_a_part_that_the_template_leaves_out_is_refused_although_its_text_is_elsewhere_in_the_chat(
    refused: Callable[..., list[str]], template: str, messages: list[dict[str, object]], part: str
) -> None:
    (reason,) = refused(template, *messages)
    assert part in reason


@pytest.mark.parametrize("template", [CALLING, DECLARED])
def test_a_template_that_writes_calls_and_results_takes_them(refused: Callable[..., list[str]], template: str) -> None:
    call = calls("search", place="東京", days=2, units=["C"], exact=True, nothing=None, empty="")
    assert refused(template, USER, call, RESULT, ANSWER) == []


def test_the_thought_of_a_last_answer_is_trained_on_although_the_question_has_its_text(
    byte_level: Callable[..., Any], tmp_path: Path
) -> None:
    """The template's prompt opens a thought, and the template leaves the thoughts of answers out, as R1-Distill's."""
    rendered = HEAD + "{{ m.content.split('</think>')[-1] }}" + TAIL
    template = rendered.replace("assistant\n{%", "assistant\n<think>\n{%")
    path, rejects = tmp_path / "data.jsonl", Rejects("x")
    answer = {"role": "assistant", "content": "<think>\n東京\n</think>\n\n晴れ"}
    path.write_text(json.dumps({"messages": [USER, answer]}, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer = byte_level(template, ["<|im_start|>", "<|im_end|>"])
    (example,) = Encoder(tokenizer).encode(list(records(open_source(path), rejects)), rejects)
    assert "東京" in tokenizer.decode(example.ids[example.trained])
