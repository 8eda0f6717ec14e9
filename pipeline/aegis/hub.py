"""What the Hub's client raises, for those who tell people about it."""

from __future__ import annotations


def http_error() -> type[Exception]:
    """The HTTP library's own root of errors: which library that is changes with huggingface-hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
