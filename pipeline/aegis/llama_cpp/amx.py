"""llama.cpp without Intel's AMX, whose tiles it can set up from memory that was never written.

Its struct of tile settings reaches the processor through `_tile_loadconfig`, of which GCC's headers say that it reads 8
bytes (gcc/config/i386/amxtileintrin.h, GCC 12); so the compiler drops the zeros behind them, and where the stack held
something else the instruction faults. Weights that are not repacked never come there.
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def has_amx() -> bool:
    """Whether the installed llama.cpp was compiled for it, as it is on a machine that has it."""
    import llama_cpp

    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


@cache
def keep_from_amx() -> None:
    """Have every model that is loaded in this process leave its weights as they are, where they could go to AMX."""
    if not has_amx():
        return
    from llama_cpp import llama_cpp as binding

    defaults = binding.llama_model_default_params

    def without_repacking() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False  # the binding's classes have no argument for it
        return parameters

    binding.llama_model_default_params = without_repacking
