"""Tests of columns and wrapped lines in terminal cells; Japanese takes two cells and breaks between characters."""

from __future__ import annotations

import io
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.messages.layout import cell_width, coloured, fold, ljust, paint, rjust, table, wrap
from aegis.messages.safe import printable

JAPANESE = (
    "学習したものと実際に動くものが同じであることを、数値で確かめます。GPU メモリー（GiB）は `aegis plan` で"
    "「収まるか」を見積もり、/models/borea のキャッシュ（8.2 GB）を使います。ショートカットはデータにありません。"
)
MARKS = "、。）」ーっゃゅょッャュョ:"


@pytest.mark.parametrize("columns", [20, 40, 80])
@pytest.mark.parametrize("start", ["", "warn  driver  ", "アダプター  "])
def test_wrapped_japanese_fits_the_terminal(start: str, columns: int) -> None:
    """Every line within it and, but for the last, nearly full; none begins with a mark, and nothing is lost."""
    lines = wrap(start, JAPANESE, columns).splitlines()
    indent = " " * min(cell_width(start), columns // 3)
    assert all(cell_width(line) <= columns for line in lines)
    assert all(cell_width(line) > columns - 16 for line in lines[:-1])
    assert all(line.startswith(indent) and line[len(indent)] not in MARKS for line in lines[1:])
    assert not any(line.endswith(("（", "「")) for line in lines)
    assert "".join("".join(lines).split()) == "".join((start + JAPANESE).split())


def test_counting_letters_would_exceed_the_terminal() -> None:
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


def test_an_address_is_not_broken_and_output_to_a_pipe_is_not_wrapped() -> None:
    address = "http://127.0.0.1:11434/with/a/path/that/is/longer/than/the/terminal"
    assert address in wrap("警告  ", f"応答がありません。{address}を見てください", 40)
    assert wrap("警告  ", JAPANESE, None) == f"警告  {JAPANESE}"


def test_a_line_feed_in_an_errors_text_does_not_break_the_indent() -> None:
    assert wrap("fail  torch  ", "one\ntwo", 40) == "fail  torch  one two"


HEADS = ["モデル", "平均 KL", "パープレキシティ"]
ROWS = [["f16", "1.21e-07", "4.910"], ["f16 → Q4_K_M", "1.48e-02", "4.975"]]


def test_columns_are_aligned_in_every_language() -> None:
    """Names at the left, numbers at the right; counting letters, the control, would not tell."""
    lines = table(HEADS, ROWS, None)
    assert lines == [
        "モデル         平均 KL  パープレキシティ",
        "f16           1.21e-07             4.910",
        "f16 → Q4_K_M  1.48e-02             4.975",
    ]
    assert {cell_width(line) for line in lines} == {40}
    assert len({len(line) for line in lines}) == 2
    assert table(HEADS, ROWS, 40) == lines
    assert table(["a", "b", "c"], [["F16", "基準", "1"]], None, names=2)[1] == "F16  基準  1"
    assert (ljust("魂", 4), rjust("魂", 4), ljust("long", 2), rjust("long", 2)) == ("魂  ", "  魂", "long", "long")


def test_a_table_that_is_too_wide_is_folded_row_by_row() -> None:
    """Each number is beside its column's head, with as many per line as fit."""
    assert table(HEADS, ROWS, 39) == [
        "",
        "f16\n  平均 KL 1.21e-07\n  パープレキシティ 4.910",
        "f16 → Q4_K_M\n  平均 KL 1.48e-02\n  パープレキシティ 4.975",
    ]
    assert table(["a", "b", "c"], [["x" * 30, "1", ""]], 20) == ["", f"{'x' * 30}\n  b 1"]
    assert table(["n", "b", "c"], [["x" * 30, "1", "2"]], 20)[1].splitlines()[1:] == ["  b 1  c 2"]


def test_a_text_keeps_its_own_indent_where_it_is_folded() -> None:
    assert fold("one\n  two three four", 10) == "one\n  two\n  three\n  four"
    assert fold("  two three four", None) == "  two three four"


def test_only_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor NO_COLOR gets one; `printable` keeps the colour marks and escapes every other sequence."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("ok", "good") == "ok"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("WT_SESSION", "1")
    assert coloured(printable(paint("ok", "good") + "\x1b[31m")) == "\x1b[32mok\x1b[0m\\x1b[31m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("ok", "good") == "ok"
