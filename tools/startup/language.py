"""The set-up speaks English or Japanese: AEGIS_LANG, else the locale's language, as the program itself does."""

from __future__ import annotations

import locale
import os


def japanese() -> bool:
    """Whether to speak Japanese."""
    names = ("AEGIS_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    asked = next((text for name in names if (text := os.environ.get(name))), None) or locale.getlocale()[0] or ""
    # Windows sets none of the variables, and calls the language by its English name
    return asked.replace("-", "_").partition("_")[0].lower() in {"ja", "japanese"}


def either(english: str, japanese_text: str) -> str:
    """The one of two texts that the reader's language asks for."""
    return japanese_text if japanese() else english
