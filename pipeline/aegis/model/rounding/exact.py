"""Arithmetic in llama.cpp's order: trials often tie, and then the last bit of a sum or a quotient chooses."""

from __future__ import annotations

from torch import Tensor


def in_order(terms: Tensor) -> Tensor:
    """Return the sum over the first dimension, each term added to the sum of those before it."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def number_over(number: float, x: Tensor) -> Tensor:
    """Return number / x, divided: torch multiplies a Python number with the reciprocal."""
    return x.new_full((), number) / x


def over_number(x: Tensor, number: float) -> Tensor:
    """Return x / number, divided: on CUDA torch multiplies x with the reciprocal of a Python number."""
    return x / x.new_full((), number)


def first_peak(x: Tensor) -> Tensor:
    """Return each column's value of largest magnitude, the first of several: (columns,)."""
    return x.gather(0, x.abs().argmax(0, keepdim=True))[0]


def root(x: Tensor) -> Tensor:
    """Return √x, correctly rounded: on a CPU torch's own is a last place off for one number in five."""
    return x.double().sqrt_().float()
