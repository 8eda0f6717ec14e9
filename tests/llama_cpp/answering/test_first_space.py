"""Tests that an answer begins with its first word."""

from __future__ import annotations

from typing import Any

from aegis.llama_cpp.answering.first_space import without_first_space


def streamed(*texts: str | None) -> list[Any]:
    pieces: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant"}}]}]
    pieces += [{"choices": [{"delta": {"content": text} if text is not None else {}}]} for text in texts]
    return [piece["choices"][0]["delta"].get("content") for piece in without_first_space(iter(pieces))][1:]


def test_only_the_white_space_before_the_first_word_is_removed() -> None:
    assert streamed(" だ", " は", "", " ", None) == ["だ", " は", "", " ", None]
    assert streamed(" ", "\n", " は", " い") == ["", "", "は", " い"]
    assert streamed("は") == ["は"]


def test_an_unstreamed_answer_also_loses_the_first_white_space() -> None:
    whole: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": " だは "}}]}
    (answer,) = without_first_space(iter([whole]))
    assert answer["choices"][0]["message"]["content"] == "だは "


def test_an_answer_that_only_calls_a_tool_is_unchanged() -> None:
    whole: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": []}}]}
    assert list(without_first_space(iter([whole]))) == [whole]
