"""Whether what was given as a base can be one, as far as its name and its folder say; nothing is loaded or fetched."""

from __future__ import annotations

import os
from pathlib import Path

from aegis.config.presets import DEMO
from aegis.errors import UsageError
from aegis.hub import is_hub_id


def is_on_hub(name: str) -> bool:
    """Return whether a name is a Hub id, and no folder here."""
    # os.path's functions are False for a name too long, Path's are not
    return is_hub_id(name) and not os.path.exists(name)  # noqa: PTH110


def no_base(name: str) -> UsageError:
    """Return the error for a name that is neither a folder nor a Hub id."""
    return UsageError("base.none", name=name)


def refuse_no_base(name: str) -> None:
    """Refuse what is neither the embedded base, nor a Hub id, nor a model folder.

    Raises:
        UsageError: there is no such folder, or it has no config.json.
    """
    if name == DEMO or is_on_hub(name):
        return
    if not os.path.isdir(name):  # noqa: PTH112
        raise no_base(name)
    if not (Path(name) / "config.json").is_file():
        raise UsageError("base.no_config", folder=name)
