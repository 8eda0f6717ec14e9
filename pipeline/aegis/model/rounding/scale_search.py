"""Searches the scale of each sub-block as llama.cpp's k-quants do, in torch on any device.

The rules are those of make_qkx2_quants, make_qx_quants and make_q3_quants in llama.cpp's ggml/src/ggml-quants.c, at the
commit of vendor_llama_cpp. Their codes are not kept: the quantizer makes them anew with the stored scales. Sub-blocks
are columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.model.rounding.exact import first_peak, in_order, number_over

NO_SCALE = 1e-15
"""A sub-block of smaller magnitudes gets the scale 0."""


def scale_and_offset(
    x: Tensor, weights: Tensor, top: int, candidates: tuple[float, ...], absolute: bool
) -> tuple[Tensor, Tensor]:
    """Find scale and offset of codes 0 to `top`, value = scale · code − offset (Q2_K, Q4_K, Q5_K).

    Args:
        x: (length of a sub-block, sub-blocks) float32.
        weights: of the same shape: the weight of each value's error.
        top: the largest code.
        candidates: each becomes a trial of codes, round(candidate · (x − least) / (largest − least)), whose scale and
            least value are fitted by least squares.
        absolute: the smallest sum of absolute errors wins, not of squares.

    Returns:
        scale and offset, both (sub-blocks,) and at least 0.
    """
    low, high = x.aminmax(dim=0)
    low = low.clamp_(max=0)
    weight_sum, x_sum = in_order(weights), in_order(weights * x)

    def error(codes: Tensor, scale: Tensor, least: Tensor) -> Tensor:
        away = (codes * scale).add_(least).sub_(x)
        return in_order((away.abs_() if absolute else away.square_()).mul_(weights))

    inverse = number_over(top, high - low)
    scale, least = number_over(1, inverse), low
    best = error(((x - low) * inverse).round_().clamp_(0, top), scale, least)
    for candidate in candidates:
        # the offset of the best trial so far, as there
        codes = ((x - least) * number_over(candidate, high - least)).round_().clamp_(0, top)
        weighted = weights * codes
        code_sum, square_sum, product_sum = in_order(weighted), in_order(weighted * codes), in_order(weighted * x)
        determinant = weight_sum * square_sum - code_sum * code_sum
        fitted = (weight_sum * product_sum - x_sum * code_sum) / determinant
        fitted_least = (square_sum * x_sum - code_sum * product_sum) / determinant
        fitted = torch.where(fitted_least > 0, product_sum / square_sum, fitted)
        fitted_least.clamp_(max=0)
        found = error(codes, fitted, fitted_least)
        better = (determinant > 0) & (found < best)
        best, scale = torch.where(better, found, best), torch.where(better, fitted, scale)
        least = torch.where(better, fitted_least, least)
    return torch.where(high == low, 0.0, scale), -least


def signed_scale(x: Tensor, top: int, candidates: tuple[float, ...]) -> Tensor:
    """Find the scale of codes −top to top − 1 whose error, weighted by x², is smallest (Q6_K).

    Args:
        x: (length of a sub-block, sub-blocks) float32.
        candidates: each becomes a trial of codes, round(−candidate · x / (x of largest magnitude)). The first stands
            unless another is better.

    Returns:
        (sub-blocks,) float32, of either sign.
    """
    largest = first_peak(x)
    weights = x * x
    weighted_x = weights * x
    scale = best = torch.zeros_like(largest)
    for trial, candidate in enumerate(candidates):
        codes = (x * number_over(-candidate, largest)).round_().clamp_(-top, top - 1)
        product_sum, square_sum = in_order(weighted_x * codes), in_order(weights * codes * codes)
        fitted = product_sum / square_sum
        better = (square_sum > 0) & ((product_sum * product_sum > best * square_sum) | (trial == 0))
        scale, best = torch.where(better, fitted, scale), torch.where(better, fitted * product_sum, best)
    return torch.where(largest.abs() < NO_SCALE, 0.0, scale)


def descended_scale(x: Tensor, top: int) -> Tensor:
    """Find the scale of codes −top to top − 1 by moving one code at a time, in five passes (Q3_K).

    Args:
        x: (length of a sub-block, sub-blocks) float32.

    Returns:
        (sub-blocks,) float32, of either sign.
    """
    largest = first_peak(x)
    codes = (x * number_over(-top, largest)).round_().clamp_(-top, top - 1)
    weights = x * x
    product_sum, square_sum = in_order(weights * x * codes), in_order(weights * codes * codes)
    for place in [*range(len(x))] * 5:
        value, weight, code = x[place], weights[place], codes[place]
        products, squares = product_sum - weight * value * code, square_sum - weight * code * code
        other = (value * squares / products).round_().clamp_(-top, top - 1)
        new_products, new_squares = products + weight * value * other, squares + weight * other * other
        better = (products > 0) & (other != code) & (new_squares > 0)
        better &= new_products * new_products * square_sum > product_sum * product_sum * new_squares
        codes[place] = torch.where(better, other, code)
        product_sum = torch.where(better, new_products, product_sum)
        square_sum = torch.where(better, new_squares, square_sum)
    scale = torch.where(square_sum > 0, product_sum / square_sum, 0.0)
    return torch.where(largest.abs() < NO_SCALE, 0.0, scale)
