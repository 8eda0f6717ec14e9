"""Checks by name and folder alone whether a given base can be one; nothing is loaded or downloaded."""

from __future__ import annotations

from pathlib import Path

from aegis.config.presets import DEMO
from aegis.errors import UsageError
from aegis.hub.client import is_hub_id
from aegis.runs import named_paths


def is_on_hub(name: str) -> bool:
    """Return whether a name is a Hub id and not a folder on this machine."""
    return is_hub_id(name) and not named_paths.exists(name)


def no_base(name: str) -> UsageError:
    """Return the error for a name that is neither a folder nor a Hub id."""
    return UsageError("base.none", name=name)


def refuse_no_base(name: str) -> None:
    """Refuse a name that is neither the embedded base, nor a Hub id, nor a model folder.

    Raises:
        UsageError: the folder does not exist or has no config.json.
    """
    if name == DEMO or is_on_hub(name):
        return
    if not named_paths.is_folder(name):
        raise no_base(name)
    if not (Path(name) / "config.json").is_file():
        raise UsageError("base.no_config", folder=name)
