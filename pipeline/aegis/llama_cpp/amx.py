"""Keeps llama.cpp from using Intel's AMX, whose tiles it may set up from uninitialized memory.

llama.cpp passes its tile settings to `_tile_loadconfig`. GCC's header declares that this reads 8 bytes
(gcc/config/i386/amxtileintrin.h, GCC 12), so the compiler drops the zeros after them, and the instruction faults if the
stack had other bytes there. Weights that are not repacked do not use this code.
"""

from __future__ import annotations

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

    defaults = binding.llama_model_default_params

    def without_repacking() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False  # the binding's classes have no argument for it
        return parameters

    binding.llama_model_default_params = without_repacking
