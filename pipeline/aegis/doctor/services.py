"""Probes of services: the Hub's token and offline mode, and Ollama."""

from __future__ import annotations

import json
import os
import shutil
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from aegis.doctor.finding import WINDOWS, Finding
from aegis.messages import phrase

_OLLAMA = "http://127.0.0.1:11434"
_TIMEOUT_S = 1.0


def hub() -> list[Finding]:
    """Check whether there is a token, without showing it, and whether the Hub's offline mode is on."""
    from huggingface_hub import constants, get_token

    token = phrase("doctor.token") if get_token() else phrase("doctor.no_token")
    if constants.HF_HUB_OFFLINE:
        unset = "set HF_HUB_OFFLINE=" if WINDOWS else "unset HF_HUB_OFFLINE"
        detail = phrase("doctor.offline", token=token, cache=constants.HF_HUB_CACHE)
        return [Finding("hub", "warn", detail, unset)]
    return [Finding("hub", "ok", token)]


def ollama() -> list[Finding]:
    """Check whether Ollama is installed and running; it is one of two ways to run the result and not required."""
    try:
        address = _ollama_address()
    except ValueError as error:
        return [Finding("ollama", "warn", phrase("doctor.ollama_address", error=str(error)))]
    version = _ollama_version(address)
    if version is not None:
        return [Finding("ollama", "ok", phrase("doctor.ollama", version=version, address=address))]
    if shutil.which("ollama") is None:
        return [Finding("ollama", "ok", phrase("doctor.no_ollama"))]
    return [Finding("ollama", "warn", phrase("doctor.ollama_silent", address=address), "ollama serve")]


def _ollama_address() -> str:
    """Return OLLAMA_HOST as a URL, read as Ollama reads it: host, host:port or a URL; 0.0.0.0 means this machine.

    Raises:
        ValueError: it is no address.
    """
    given = os.environ.get("OLLAMA_HOST", "").strip()
    if not given:
        return _OLLAMA
    parts = urlsplit(given if "//" in given else f"//{given}", scheme="http")
    host = parts.hostname or "127.0.0.1"
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 (compared, not bound to)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port or 11434}"


def _ollama_version(address: str) -> str | None:
    # no proxy: it is this machine, or one in the user's own network
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{address}/api/version", timeout=_TIMEOUT_S) as answer:
            return str(json.loads(answer.read(1000))["version"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
