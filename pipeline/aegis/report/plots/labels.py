"""The labels of pictures in the reader's language; in English where matplotlib finds no font with Japanese letters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from aegis import progress
from aegis.messages import Language, bilingual, language, phrase

Parameters = ParamSpec("Parameters")

_JAPANESE = (
    *("Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans JP", "IPAexGothic", "IPAPGothic", "IPAGothic"),
    *("TakaoPGothic", "VL PGothic", "VL Gothic", "BIZ UDPGothic", "UD Digi Kyokasho N-R"),
    *("Hiragino Sans", "Hiragino Kaku Gothic ProN", "Yu Gothic", "Meiryo", "MS Gothic"),
)
"""Fonts of Linux distributions, macOS and Windows."""


@functools.cache
def japanese_font() -> str | None:
    """Return the name of a font with Japanese letters; None, with a line for the reader, if there is none."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    found = next((name for name in _JAPANESE if name in installed), None)
    if found is None:
        progress.say(phrase("picture.no_font"))
    return found


def drawn_in() -> Language:
    """Return the language of pictures."""
    return "ja" if language() == "ja" and japanese_font() else "en"


def label(key: str, **values: object) -> str:
    """Return the message `key` in the language of pictures."""
    return bilingual(key, **values).in_language(drawn_in())


def with_readers_font(draw: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Give a function that draws a picture the font for its labels; other letters keep matplotlib's own."""

    @functools.wraps(draw)
    def drawn(*arguments: Parameters.args, **named: Parameters.kwargs) -> None:
        from matplotlib import rc_context

        fonts = ["DejaVu Sans", *([japanese_font()] if drawn_in() == "ja" else [])]
        with rc_context({"font.family": fonts}):
            draw(*arguments, **named)

    return drawn
