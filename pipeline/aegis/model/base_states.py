"""Computes the base's final hidden states of kept windows, once, and loads the base to write kept text.

The base is in 16 bit. If it does not fit the device, its layers are read from the shards one after the other
(accelerate's offloading); a pass then takes many windows, because every pass reads all weights.
"""

from __future__ import annotations

import gc
import math
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from aegis import progress
from aegis.data.packing import Windows
from aegis.errors import EnvironmentFault
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.device import free_bytes
from aegis.model.load import Precision, compute_dtype, load_base, load_offloaded
from aegis.model.soul_hook import decoder_of
from aegis.runs import disk

_BESIDE_BYTES = 1 << 30
"""Bytes that a pass needs beside the weights."""
_PASS_TOKENS, _OFFLOADED_PASS_TOKENS = 2048, 16384
_PART_OF_MEMORY = 4
"""States may take 1 / _PART_OF_MEMORY of the host's free memory; larger ones go to a file."""


def fits_16bit(base: Base, device: torch.device) -> bool:
    """Whether the base in its compute dtype, and what a pass needs, fit the device's free memory."""
    parameters = sum(math.prod(entry.shape) for entry in base.shards.entries.values())
    needed = parameters * compute_dtype(device).itemsize + _BESIDE_BYTES
    return needed <= free_bytes(device)


@contextmanager
def writing_base(base: Base, device: torch.device) -> Iterator[tuple[Any, Precision]]:
    """Load the base to write text with, in 16 bit or, if that does not fit, in NF4; yield it and its precision.

    Call `release` after the block, when nothing refers to the base any more.

    Raises:
        EnvironmentFault: NF4 does not fit either, or the block runs out of the device's memory.
    """
    precision: Precision = "16bit" if fits_16bit(base, device) else "4bit"
    if precision == "4bit":
        progress.say(phrase("keep.writes_in_nf4"))
    model = load_base(base.folder, precision, device).eval()
    try:
        yield model, precision
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(error) from error


def _out_of_memory(error: torch.OutOfMemoryError) -> EnvironmentFault:
    return EnvironmentFault("load.out_of_memory", error=str(error).partition("\n")[0])


def release(device: torch.device) -> None:
    """Return the memory of objects that were just dropped to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def base_states(base: Base, windows: Windows, device: torch.device, spill: Path) -> Tensor:
    """Compute the 16-bit base's hidden states after the final norm, for every position, without adapter and soul.

    Args:
        windows: their documents do not attend to each other.
        spill: folder for the states if they do not fit the host's memory.

    Returns:
        (windows, max_length, hidden_size) in the dtype that `device` computes in, in the host's memory or mapped into
        it.

    Raises:
        EnvironmentFault: the device's memory or the disk is full.
    """
    whole = fits_16bit(base, device)
    with tempfile.TemporaryDirectory(prefix="aegis-layers-") as scratch:
        if whole:
            model = load_base(base.folder, "16bit", device)
        else:
            progress.say(phrase("keep.layer_by_layer"))
            model = load_offloaded(base.folder, device, Path(scratch))
        decoder: Any = decoder_of(model.eval())
        per_pass = max(1, (_PASS_TOKENS if whole else _OFFLOADED_PASS_TOKENS) // windows.max_length)
        shape = len(windows), windows.max_length, model.config.get_text_config().hidden_size
        states = _allocate(shape, compute_dtype(device), spill)
        try:
            with progress.task(phrase("keep.states"), len(windows), "window") as bar:
                for start in range(0, len(windows), per_pass):
                    numbers = range(start, min(start + per_pass, len(windows)))
                    states[start : numbers.stop] = _pass(decoder, windows, numbers, device)
                    bar.advance(len(numbers))
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error) from error
        finally:
            del model, decoder
            release(device)
    return states


def _pass(decoder: Any, windows: Windows, numbers: Sequence[int], device: torch.device) -> Tensor:
    batch = windows.batch(numbers)
    ids, positions = (torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.position_ids))
    # no attention mask: transformers separates documents by their positions
    states: Tensor = decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    return states


def states_bytes(windows: int, max_length: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of what `base_states` returns."""
    return windows * max_length * hidden_size * dtype.itemsize


def _allocate(shape: tuple[int, int, int], dtype: torch.dtype, spill: Path) -> Tensor:
    size = states_bytes(*shape, dtype)
    if size <= psutil.virtual_memory().available // _PART_OF_MEMORY:
        return torch.empty(shape, dtype=dtype)
    try:
        spill.mkdir(parents=True, exist_ok=True)
        # the mapping keeps the file until its last tensor is gone
        with tempfile.TemporaryFile(dir=spill) as file:
            disk.reserve(file, size, spill)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise EnvironmentFault("keep.no_room", folder=spill, error=str(error)) from error
    return torch.frombuffer(mapped, dtype=dtype).view(shape)
