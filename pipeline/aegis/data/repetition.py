"""Recognises a column that only repeats a row's texts: one of them, or the conversation as a template wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(
    r"""
    \s | <[^<>\s][^<>]*> | \[/?[A-Z_]+\] | [#*=|:：\-]
    | \b (?: system | user | assistant | human | gpt | ai | bot | model | tool
           | instructions? | input | context | prompt | question | query
           | response | output | answer | completion ) \b
    | システム | ユーザー | アシスタント | 人間 | 指示 | 入力 | 質問 | 文脈 | 応答 | 回答 | 出力
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What a template writes around the texts: tags, rules, headings with a role's name."""


def is_repetition(value: object, texts: Sequence[str]) -> bool:
    """Whether a value is one of the texts, or all of them in this order with nothing but markup around them.

    White space at the ends does not count.
    """
    if not isinstance(value, str) or not texts:
        return False
    value, known = value.strip(), [text.strip() for text in texts]
    return value in known or _is_rendered(value, known)


def _is_rendered(value: str, texts: Sequence[str]) -> bool:
    place = 0
    for text in (*texts, ""):
        while not (value.startswith(text, place) if text else place == len(value)):
            markup = _MARKUP.match(value, place)
            if markup is None:
                return False
            place = markup.end()
        place += len(text)
    return True
