"""Pieces become text: characters whole, stops found wherever they lie."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.llama_cpp.text_stream import joined, until_stop


@given(st.text(), st.data())
def test_any_text_cut_anywhere_comes_out_the_same(text: str, data: st.DataObject) -> None:
    encoded = text.encode("utf-8", errors="replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)))))
    bounds = [0, *cuts, len(encoded)]
    pieces = [encoded[a:b] for a, b in itertools.pairwise(bounds)]
    out = list(joined(pieces))
    assert "".join(out) == encoded.decode("utf-8")
    assert all(out)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert "".join(joined([b"a\xe3", b"\x81", b"b"])) == "a\ufffdb"
    assert "".join(joined([b"end\xe3\x81"])) == "end\ufffd"


@given(st.lists(st.text("ab日", max_size=4)), st.lists(st.text("ab日", min_size=1, max_size=3), max_size=3))
def test_a_stop_is_found_across_pieces(texts: list[str], stops: list[str]) -> None:
    whole, got = "".join(texts), "".join(until_stop(texts, stops))
    if not any(stop in whole for stop in stops):
        assert got == whole
    else:
        assert not any(stop in got for stop in stops)
        assert whole.startswith(got)
        assert whole[len(got) :].startswith(tuple(stops))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["abc<|e", "nd|>def"], ["abc"]),
        (["abc<|e", "x"], ["abc", "<|ex"]),
        (["<|end|>"], []),
        (["a", "b", "<"], ["a", "b", "<"]),
        (["<|", "end|>", "never asked for"], []),
    ],
)
def test_what_could_begin_a_stop_is_held_back_and_no_more(texts: list[str], expected: list[str]) -> None:
    assert list(until_stop(texts, ["<|end|>", ""])) == expected


def test_nothing_is_drawn_after_a_stop() -> None:
    drawn = []

    def texts() -> object:
        for text in ("a", "STOP", "b"):
            drawn.append(text)
            yield text

    assert list(until_stop(texts(), ["STOP"])) == ["a"]  # type: ignore[arg-type]
    assert drawn == ["a", "STOP"]
