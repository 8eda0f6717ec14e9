"""pip's own settings, handed on to uv: an index, a mirror, a folder of wheels or a proxy holds for both.

uv reads no pip configuration. Without this, whoever is behind a mirror would see uv ask the public index, and
whoever keeps a CPU build of torch in a folder would see uv download the CUDA build.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from startup.children import child_environment

_SCOPES = ("global", "install", ":env:")  # a later one wins, as in pip
_TRUE = {"1", "true", "yes", "on", "y", "t"}


@dataclass(frozen=True)
class PipSettings:
    """What uv has to be given.

    Attributes:
        flags: options of `uv pip install`.
        environment: variables of its process.
        own_places: whether packages may come from other places than one index: then torch may be another build
            than the public index has, and its hash with it.
        certificates: the file with the accepted certificates, if one is set.
    """

    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    own_places: bool = False
    certificates: str | None = None


def pip_settings(environment: Mapping[str, str] | None = None) -> PipSettings:
    """pip's settings as they are on this machine; variables of uv's own that are set already win over them."""
    environment = os.environ if environment is None else environment
    return for_uv(_read(environment), environment)


def for_uv(found: Mapping[str, str], environment: Mapping[str, str]) -> PipSettings:
    """pip's options `found`, by their long names, in uv's words."""

    def set_for_uv(*names: str) -> bool:
        return any(environment.get(name) for name in names)

    flags: list[str] = []
    if found.get("index-url") and not set_for_uv("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        flags += ["--default-index", found["index-url"]]
    extra = [] if set_for_uv("UV_INDEX", "UV_EXTRA_INDEX_URL") else found.get("extra-index-url", "").split()
    links = [] if set_for_uv("UV_FIND_LINKS") else found.get("find-links", "").split()
    for name, values in (
        ("--index", extra),
        ("--find-links", links),
        ("--constraints", found.get("constraint", "").split()),
        ("--allow-insecure-host", found.get("trusted-host", "").split()),
    ):
        flags += [word for value in values for word in (name, value)]
    if extra and not set_for_uv("UV_INDEX_STRATEGY"):
        flags += ["--index-strategy", "unsafe-best-match"]  # pip's own way: the best version of all indexes
    if found.get("no-index", "").lower() in _TRUE:
        flags.append("--no-index")
    variables = {}
    for option, names in (
        ("proxy", ("HTTPS_PROXY", "HTTP_PROXY")),
        ("cert", ("SSL_CERT_FILE",)),
        ("client-cert", ("SSL_CLIENT_CERT",)),
        ("default-timeout", ("UV_HTTP_TIMEOUT",)),
        ("timeout", ("UV_HTTP_TIMEOUT",)),
    ):
        if found.get(option):
            variables.update({name: found[option] for name in names if not environment.get(name)})
    own_places = bool(extra or links) or set_for_uv("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
    return PipSettings(tuple(flags), variables, own_places, found.get("cert"))


def _read(environment: Mapping[str, str]) -> dict[str, str]:
    """pip's options by their long names: as pip itself reports them, or from PIP_* where this Python has no pip."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        answer = None
    if answer is not None and answer.returncode == 0:
        return parse(answer.stdout)
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("PIP_") and value
    }


def parse(listing: str) -> dict[str, str]:
    """The options in what `pip config list` prints, the scopes laid over each other."""
    scopes: dict[str, dict[str, str]] = {scope: {} for scope in _SCOPES}
    for line in listing.splitlines():
        place, equals, quoted = line.partition("=")
        scope, _, option = place.rpartition(".")
        if not equals or scope not in scopes:
            continue
        try:
            scopes[scope][option] = str(ast.literal_eval(quoted))
        except (SyntaxError, ValueError):
            continue
    return {option: value for scope in _SCOPES for option, value in scopes[scope].items()}
