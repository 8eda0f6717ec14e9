"""The options that every compilation of a training has."""

from __future__ import annotations

from typing import Any

REPEATABLE: dict[str, Any] = {"dynamic_scale_rblock": False}
"""No variants that torch adds while it measures. torch 2.11 does not find them in its own records again: it measures
such a kernel in every process, and a resumed training may round otherwise than the one that it goes on with
(_load_cached_autotuning in torch/_inductor/runtime/autotune_cache.py and _dynamic_scale_rblock in triton_heuristics.py
at v2.11.0)."""
