"""Loads a trained model without merging it: base, adapter and soul as they were when training ended."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aegis.errors import IntegrityError
from aegis.model.base import Base
from aegis.model.load import Precision, load_base
from aegis.model.soul_hook import soul_hook
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import SoulRecord, load_soul
from aegis.soul.module import Soul


@contextmanager
def live_model(base: Base, adapter: Path, load_in: Precision, device: torch.device) -> Iterator[Any]:
    """Yield a model in eval mode whose forward pass includes adapter and soul.

    Args:
        adapter: folder with the adapter and its soul.
        load_in: the base's precision; training usually uses "4bit".

    Raises:
        IntegrityError: adapter or soul do not fit the base.
    """
    with made_live(load_base(base.folder, load_in, device), base, adapter) as model:
        yield model


@contextmanager
def made_live(model: Any, base: Base, adapter: Path) -> Iterator[Any]:
    """Put adapter and soul on a loaded base, and yield it in eval mode; its layers are then the adapter's.

    Raises:
        IntegrityError: adapter or soul do not fit the base.
    """
    from peft import PeftModel

    device = model.device
    try:
        with warnings.catch_warnings():
            # peft keeps the initial values of what the file lacks, and these have no effect
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        raise IntegrityError("live.other_adapter", adapter=adapter, base_name=base.name, error=str(error)) from error
    with soul_hook(model, soul_module(load_soul(adapter / SOUL_FILE)).to(device)):
        yield model.eval()


def soul_module(record: SoulRecord) -> Soul:
    """Make a module from a soul's record: R is its start, and its skew is zero, since exp(0) = I."""
    soul = Soul(record.hidden_size, kind=record.kind, alpha=record.alpha, counter_scale=record.counter_scale)
    with torch.no_grad():
        soul.start.copy_(record.rotation)
    return soul.requires_grad_(False).eval()
