"""pip's own settings, handed on to uv: an index, a mirror, a folder of wheels or a proxy holds for both.

uv reads no pip configuration. Without this, whoever is behind a mirror would see uv ask the public index, and
whoever keeps a CPU build of torch in a folder would see uv download the CUDA build.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping, MutableMapping

from startup.children import child_environment

# pip's option, the variable for uv, and another variable that has the same meaning
_VARIABLES = (
    ("index-url", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    ("extra-index-url", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    ("find-links", "UV_FIND_LINKS", ""),
    ("trusted-host", "UV_INSECURE_HOST", ""),
    ("proxy", "HTTPS_PROXY", ""),
    ("proxy", "HTTP_PROXY", ""),
    ("cert", "SSL_CERT_FILE", ""),
    ("client-cert", "SSL_CLIENT_CERT", ""),
    ("default-timeout", "UV_HTTP_TIMEOUT", ""),
    ("timeout", "UV_HTTP_TIMEOUT", ""),
)
_TRUE = {"1", "true", "yes", "on", "y", "t"}


def hand_on_pip_settings(environment: MutableMapping[str, str]) -> list[str]:
    """Set uv's variables where pip has a setting and uv has none.

    Returns:
        The options of `uv pip install` for the settings that no variable of uv has.
    """
    found = _read(environment)
    for option, name, same in _VARIABLES:
        if found.get(option) and not environment.get(name) and not environment.get(same):
            words = found[option].split()
            environment[name] = ",".join(words) if option == "find-links" else " ".join(words)
            if option == "extra-index-url":  # pip's own way: the best version of all indexes
                environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    flags = [word for path in found.get("constraint", "").split() for word in ("--constraints", path)]
    return [*flags, "--no-index"] if found.get("no-index", "").lower() in _TRUE else flags


def _read(environment: Mapping[str, str]) -> dict[str, str]:
    """pip's options by their long names: those of its files, if this Python has a pip, and over them PIP_*."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=child_environment())
        found = parse(answer.stdout)
    except OSError:
        found = {}
    variables = {name.removeprefix("PIP_"): value for name, value in environment.items() if name.startswith("PIP_")}
    return {**found, **{name.lower().replace("_", "-"): value for name, value in variables.items() if value}}


def parse(listing: str) -> dict[str, str]:
    """The options for all commands and for install in what `pip config list` prints."""
    found = {}
    for scope in ("global.", "install."):  # the later one wins, as in pip
        for line in listing.splitlines():
            name, _, quoted = line.partition("=")
            if name.startswith(scope):
                found[name.removeprefix(scope)] = str(ast.literal_eval(quoted))
    return found
