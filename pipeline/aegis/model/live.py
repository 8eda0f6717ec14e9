"""A trained model, alive: base, adapter and soul as they were when training ended."""

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
def live_model(
    base: Base,
    adapter: Path,
    load_in: Precision,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Iterator[Any]:
    """Give a model in eval mode whose forward pass goes through adapter and soul.

    Args:
        adapter: folder with the adapter and its soul.
        load_in: the base's precision; training's own is usually "4bit".
        dtype: to compute in; as in training if None.

    Raises:
        IntegrityError: adapter or soul do not fit the base.
    """
    from peft import PeftModel

    model = load_base(base.folder, load_in, device, dtype)
    try:
        with warnings.catch_warnings():
            # peft leaves what the file lacks as it was initialised, which is no adapter at all
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        raise IntegrityError("live.other_adapter", adapter=adapter, base_name=base.name, error=str(error)) from error
    with soul_hook(model, soul_module(load_soul(adapter / SOUL_FILE)).to(device)):
        yield model.eval()


def soul_module(record: SoulRecord) -> Soul:
    """The soul of a record as a module: R is its start, its skew is zero, exp(0) = I."""
    soul = Soul(record.hidden_size, kind=record.kind, alpha=record.alpha, counter_scale=record.counter_scale)
    with torch.no_grad():
        soul.start.copy_(record.rotation)
    return soul.requires_grad_(False).eval()
