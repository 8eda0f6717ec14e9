"""Columns and folded lines in the cells of a terminal: Japanese takes two a letter, and breaks nearly anywhere."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.messages.layout import cells, folded, left, right, row, widths

JAPANESE = (
    "学習したものと実際に動くものが同じであることを、数値で確かめます。GPU メモリー（GiB）は `aegis plan` で"
    "「収まるか」を見積もり、/models/borea のキャッシュ（8.2 GB）を使います。ショートカットはデータにありません。"
)
MARKS = "、。）」ーっゃゅょッャュョ:"


@pytest.mark.parametrize("columns", [20, 40, 80])
@pytest.mark.parametrize("start", ["", "warn  driver  ", "アダプター  "])
def test_japanese_fits_the_terminal(start: str, columns: int) -> None:
    """Every line within it and, but for the last, nearly full; none begins with a mark, and nothing is lost."""
    lines = folded(start, JAPANESE, columns).splitlines()
    indent = " " * min(cells(start), columns // 3)
    assert all(cells(line) <= columns for line in lines)
    assert all(cells(line) > columns - 16 for line in lines[:-1])
    assert all(line.startswith(indent) and line[len(indent)] not in MARKS for line in lines[1:])
    assert not any(line.endswith(("（", "「")) for line in lines)
    assert "".join("".join(lines).split()) == "".join((start + JAPANESE).split())


def test_counting_letters_would_miss() -> None:
    """The control: what textwrap makes of it is too wide."""
    assert max(map(cells, textwrap.wrap(JAPANESE, 40))) > 40


@given(
    st.lists(st.text("abc-/.:;,()", min_size=1, max_size=50), min_size=1, max_size=12).map(" ".join),
    st.sampled_from(["x", "ok    Python  ", "      do: "]),
    st.integers(12, 60),
)
def test_english_folds_as_textwrap_does(text: str, start: str, columns: int) -> None:
    indent = " " * min(len(start), columns // 3)
    wanted = textwrap.fill(
        start + text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    assert folded(start, text, columns) == wanted


def test_an_address_is_left_whole_and_a_pipe_is_not_folded() -> None:
    address = "http://127.0.0.1:11434/with/a/path/that/is/longer/than/the/terminal"
    assert address in folded("警告  ", f"応答がありません。{address}を見てください", 40)
    assert folded("警告  ", JAPANESE, None) == f"警告  {JAPANESE}"


def test_a_line_feed_in_an_errors_text_does_not_break_the_indent() -> None:
    assert folded("fail  torch  ", "one\ntwo", 40) == "fail  torch  one two"


def test_columns_stand_in_any_language() -> None:
    heads = ["モデル", "平均 KL", "パープレキシティ"]
    columns = widths(heads, (10, 11, 12))
    assert columns == [10, 11, 18]
    lines = [row(heads, columns), row(["f16", "1.21e-07", "4.910"], columns)]
    assert lines == ["モデル        平均 KL  パープレキシティ", "f16          1.21e-07             4.910"]
    assert {cells(line) for line in lines} == {39}
    assert len({len(line) for line in lines}) == 2  # the control: letters do not tell
    assert row(["F16", "基準"], (9, 18, 9), names=2) == "F16      基準              "
    assert (left("魂", 4), right("魂", 4), left("long", 2), right("long", 2)) == ("魂  ", "  魂", "long", "long")
