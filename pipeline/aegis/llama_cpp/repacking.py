"""Keeps llama.cpp from repacking a model's weights: always if it would use Intel's AMX, else while a block runs.

AMX: llama.cpp passes its tile settings to `_tile_loadconfig`. GCC's header declares that this reads 8 bytes
(gcc/config/i386/amxtileintrin.h, GCC 12), so the compiler drops the zeros after them, and the instruction faults if the
stack had other bytes there. Weights that are not repacked do not use this code.

Repacking takes seconds while a model is loaded, and makes it quicker afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def has_amx() -> bool:
    """Return whether the installed llama.cpp was compiled for AMX, as on a machine with AMX."""
    import llama_cpp

    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


@cache
def keep_from_amx() -> None:
    """Let no model that is loaded in this process repack its weights, if llama.cpp was compiled for AMX."""
    if not has_amx():
        return
    from llama_cpp import llama_cpp as binding

    binding.llama_model_default_params = _without_repacking(binding.llama_model_default_params)


@contextmanager
def as_in_the_file() -> Iterator[None]:
    """Let no model that is loaded while the block runs repack its weights."""
    from llama_cpp import llama_cpp as binding

    keep_from_amx()  # inside the block, it would end with the block
    defaults = binding.llama_model_default_params
    binding.llama_model_default_params = _without_repacking(defaults)
    try:
        yield
    finally:
        binding.llama_model_default_params = defaults


def _without_repacking(defaults: Callable[[], Any]) -> Callable[[], Any]:
    def changed() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False  # the binding's classes have no argument for it
        return parameters

    return changed
