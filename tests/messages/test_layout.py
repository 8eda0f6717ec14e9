"""Columns and folded lines in the cells of a terminal: Japanese takes two a letter, and breaks nearly anywhere."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.messages.layout import cell_width, ljust, rjust, table_row, widths, wrap

JAPANESE = (
    "学習したものと実際に動くものが同じであることを、数値で確かめます。GPU メモリー（GiB）は `aegis plan` で"
    "「収まるか」を見積もり、/models/borea のキャッシュ（8.2 GB）を使います。ショートカットはデータにありません。"
)
MARKS = "、。）」ーっゃゅょッャュョ:"


@pytest.mark.parametrize("columns", [20, 40, 80])
@pytest.mark.parametrize("start", ["", "warn  driver  ", "アダプター  "])
def test_japanese_fits_the_terminal(start: str, columns: int) -> None:
    """Every line within it and, but for the last, nearly full; none begins with a mark, and nothing is lost."""
    lines = wrap(start, JAPANESE, columns).splitlines()
    indent = " " * min(cell_width(start), columns // 3)
    assert all(cell_width(line) <= columns for line in lines)
    assert all(cell_width(line) > columns - 16 for line in lines[:-1])
    assert all(line.startswith(indent) and line[len(indent)] not in MARKS for line in lines[1:])
    assert not any(line.endswith(("（", "「")) for line in lines)
    assert "".join("".join(lines).split()) == "".join((start + JAPANESE).split())


def test_counting_letters_would_miss() -> None:
    """The control: what textwrap makes of it is too wide."""
    assert max(map(cell_width, textwrap.wrap(JAPANESE, 40))) > 40


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
    assert wrap(start, text, columns) == wanted


def test_an_address_is_left_whole_and_a_pipe_is_not_folded() -> None:
    address = "http://127.0.0.1:11434/with/a/path/that/is/longer/than/the/terminal"
    assert address in wrap("警告  ", f"応答がありません。{address}を見てください", 40)
    assert wrap("警告  ", JAPANESE, None) == f"警告  {JAPANESE}"


def test_a_line_feed_in_an_errors_text_does_not_break_the_indent() -> None:
    assert wrap("fail  torch  ", "one\ntwo", 40) == "fail  torch  one two"


def test_columns_stand_in_any_language() -> None:
    heads = ["モデル", "平均 KL", "パープレキシティ"]
    columns = widths(heads, (10, 11, 12))
    assert columns == [10, 11, 18]
    lines = [table_row(heads, columns), table_row(["f16", "1.21e-07", "4.910"], columns)]
    assert lines == ["モデル        平均 KL  パープレキシティ", "f16          1.21e-07             4.910"]
    assert {cell_width(line) for line in lines} == {39}
    assert len({len(line) for line in lines}) == 2  # the control: letters do not tell
    assert table_row(["F16", "基準"], (9, 18, 9), names=2) == "F16      基準              "
    assert (ljust("魂", 4), rjust("魂", 4), ljust("long", 2), rjust("long", 2)) == ("魂  ", "  魂", "long", "long")
