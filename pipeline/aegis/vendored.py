"""Finds `vendor_llama_cpp`: beside pipeline/ in a checkout, inside aegis where a wheel was installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import vendor_llama_cpp
else:
    try:
        from aegis import vendor_llama_cpp
    except ImportError:
        import vendor_llama_cpp

__all__ = ["vendor_llama_cpp"]
