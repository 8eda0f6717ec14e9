"""A parser with a bug behind four bytes: a guided fuzzer finds it step by step, a blind one hardly ever."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from tests.faults.hostile import Target


def parse(data: bytes, _place: Path) -> str:
    """Accept everything, with a bug."""
    if len(data) < 4 or data[0] >> 4 != 0xA:
        return "no magic"
    if data[1] >> 4 != 0x5:
        return "no version"
    if data[2] >> 4 != 0x9:
        return "no header"
    if data[3] >> 4 != 0x0:
        return "no tensors"
    return [][0]


TARGET = Target("planted", st.nothing(), parse, seeds=(b"honest",))
