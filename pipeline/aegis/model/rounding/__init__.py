"""Rounds rows of a weight to a quantized type and back, with llama.cpp's own values, on a CPU or a GPU."""

from aegis.model.rounding.dispatch import rounded

__all__ = ["rounded"]
