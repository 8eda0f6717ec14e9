"""Builds a base without its weights from config.json; if transformers cannot, finds the key that causes the error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aegis.errors import AegisError, IntegrityError, first_line
from aegis.messages import phrase

_SECONDS = 20.0
"""Time limit for finding the key that causes an error; building a model of 48 layers takes a third of a second."""


def load_config(folder: Path) -> Any:
    """Load config.json as a transformers config.

    Raises:
        IntegrityError: transformers cannot read it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers checks only some fields; a wrong value in another can raise anything
        raise _refused(folder, error) from error


def empty_model(folder: Path, **options: Any) -> Any:
    """Build a folder's …ForCausalLM on the meta device; only config.json is read.

    Args:
        options: arguments of `from_config`, such as `dtype`.

    Raises:
        IntegrityError: transformers cannot build it; the message names the keys that cause this, if they are found.
    """
    config = load_config(folder)
    try:
        return _built(config, **options)
    except Exception as error:  # a model's constructor can raise anything
        raise _refused(folder, error) from error


@contextmanager
def step_of_config(folder: Path) -> Iterator[None]:
    """Report an exception of the block, which runs a model without weights, as an error of its config.

    Raises:
        IntegrityError: torch or transformers raised; it has their message.
    """
    try:
        yield
    except AegisError:
        raise
    except Exception as error:  # sizes that do not match can fail in any operation
        raise IntegrityError("base.no_step", path=folder / "config.json", error=first_line(error)) from error


def _built(config: Any, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **options)


def _refused(folder: Path, error: Exception) -> IntegrityError:
    keys = _keys_to_blame(folder)
    blame = phrase("base.blamed", keys=", ".join(keys)) if keys else ""
    text = " ".join(str(error).split()).rstrip(".;") or type(error).__name__  # a first line may end with a colon
    return IntegrityError("base.unreadable_config", path=folder / "config.json", error=text, blame=blame)


def _keys_to_blame(folder: Path) -> list[str]:
    """Return the keys of config.json, with values, each of which alone prevents the model from being built."""
    from transformers import PretrainedConfig
    from transformers.utils import logging

    try:
        values = PretrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    except Exception:  # not even JSON: the error itself says so
        return []
    end, level = time.monotonic() + _SECONDS, logging.get_verbosity()
    logging.set_verbosity_error()  # otherwise each trial repeats the same warnings
    try:
        return [
            f"{key} = {value!r}"
            for key, value in values.items()
            if key != "model_type" and time.monotonic() < end and _builds_without(key, values)
        ]
    finally:
        logging.set_verbosity(level)


def _builds_without(key: str, values: Mapping[str, Any]) -> bool:
    from transformers import AutoConfig

    try:
        _built(AutoConfig.for_model(**{name: value for name, value in values.items() if name != key}))
    except Exception:  # the error has another cause as well
        return False
    return True
