"""Tests that pieces become text with complete characters, wherever their bytes were cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aegis.llama_cpp.text_stream import joined


@given(st.text(), st.data())
def test_text_that_is_cut_anywhere_is_decoded_the_same(text: str, data: st.DataObject) -> None:
    encoded = text.encode("utf-8", errors="replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)))))
    bounds = [0, *cuts, len(encoded)]
    pieces = [encoded[a:b] for a, b in itertools.pairwise(bounds)]
    out = list(joined(pieces))
    assert "".join(out) == encoded.decode("utf-8")
    assert all(out)


def test_invalid_utf8_becomes_replacement_characters() -> None:
    assert "".join(joined([b"a\xe3", b"\x81", b"b"])) == "a\ufffdb"
    assert "".join(joined([b"end\xe3\x81"])) == "end\ufffd"
