"""A library's layer with another forward pass: its parameters, names and place in the model stay."""

from __future__ import annotations

from functools import cache


@cache
def with_mixin(layer: type, by: type) -> type:
    """The class of a layer with `by` mixed in before it.

    One class for all layers of a kind: compiled code asks for it, and would be compiled anew for another.
    """
    return type(by.__name__.lstrip("_") + layer.__name__, (by, layer), {})
