"""Loads a trained model without merging it: base, adapter and soul as they were when training ended."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aegis.errors import EnvironmentFault, IntegrityError, first_line
from aegis.model.adapter import load_adapter
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
        EnvironmentFault: the memory is full; or as in `load_base`.
        IntegrityError, UsageError: as in `load_base` and `made_live`.
    """
    with made_live(load_base(base.folder, load_in, device), base, adapter) as model:
        yield model


@contextmanager
def made_live(model: Any, base: Base, adapter: Path) -> Iterator[Any]:
    """Put adapter and soul on a loaded base, and yield it in eval mode; its layers are then the adapter's.

    Raises:
        EnvironmentFault: the memory is full.
        IntegrityError: adapter or soul are damaged, or do not fit the base.
        UsageError: a file of them is missing, the adapter cannot be merged, or the soul has another hidden size.
    """
    from peft import PeftModel

    load_adapter(adapter)  # refuses damaged files, and peft would look on the Hub for what is missing
    device = model.device
    try:
        with warnings.catch_warnings():
            # peft keeps the initial values of what the file lacks, and these have no effect
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EnvironmentFault("load.out_of_memory", error=first_line(error)) from error
    except Exception as error:  # peft can raise anything for values of other types in adapter_config.json
        raise IntegrityError("live.other_adapter", adapter=adapter, base_name=base.name, error=str(error)) from error
    with soul_hook(model, soul_module(load_soul(adapter / SOUL_FILE)).to(device)):
        yield model.eval()


def soul_module(record: SoulRecord) -> Soul:
    """Make a module from a soul's record: R is its start, and its skew is zero, since exp(0) = I."""
    soul = Soul(record.hidden_size, kind=record.kind, alpha=record.alpha, counter_scale=record.counter_scale)
    with torch.no_grad():
        soul.start.copy_(record.rotation)
    return soul.requires_grad_(False).eval()
