"""Removes tokens and passwords from text: those of a known form, and those of this environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_ADDRESSES: tuple[str, ...] = (
    "HF_ENDPOINT",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_PROXY",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
)
_ADDRESSES += tuple(name for kind in ("HTTP", "HTTPS", "ALL") for name in (f"{kind}_PROXY", f"{kind}_PROXY".lower()))
_SHORTEST = 4
"""Minimum length of a secret: a shorter part of a password would be found in too many other words."""
_FORMS = (
    (re.compile(r"hf_[A-Za-z0-9]{20,}"), "hf_…"),
    (re.compile(r"(Bearer|Basic)\s+[^\s\"']+"), r"\1 …"),
    (re.compile(r"://[^/\s]+@"), "://…@"),
)


def without_secrets(text: str) -> str:
    """Replace every secret in a text by an ellipsis."""
    for secret in sorted(_in_use(), key=len, reverse=True):
        text = text.replace(secret, "…")
    for pattern, shown in _FORMS:
        text = pattern.sub(shown, text)
    return text


def malformed_address() -> str | None:
    """Return the variable whose address cannot be parsed; it may have a password, so the address is not shown."""
    for name in _ADDRESSES:
        try:
            _ = urlsplit(os.environ.get(name, "")).port
        except ValueError:
            return name
    return None


def _in_use() -> set[str]:
    """Return this environment's tokens and its addresses' users (before the @), in the forms that libraries print."""
    tokens = {os.environ.get(name, "") for name in _TOKENS}
    users = {os.environ.get(name, "").rpartition("://")[2].rpartition("@")[0] for name in _ADDRESSES}
    found = {*tokens, *(part for user in users for part in _parts(user))}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _parts(user: str) -> Iterator[str]:
    """Yield the forms of a name with its password: both, the password, and its pieces, which an error may quote."""
    password = user.partition(":")[2]
    for form in (password, unquote(password)):
        yield from (form, *re.split("[:@/]", form))
    yield from (user, unquote(user))
