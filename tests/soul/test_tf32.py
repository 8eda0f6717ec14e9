"""Tests of the inputs of a GPU's tensor cores with a CPU's exact products; tests/training/test_gpu.py uses a GPU."""

import torch

from aegis.soul import tf32
from aegis.soul.rotation import random_rotation


def test_a_gram_matrix_of_halves_has_float32s_accuracy() -> None:
    """As a GPU works it out, here with whole products; what the lower bits have of it is what float32 tells apart."""
    matrices = random_rotation(1, 64, torch.Generator().manual_seed(0))
    exact = matrices.double().mT @ matrices.double()
    assert (tf32._gram_of_halves(matrices) - exact).abs().max() < 1e-6
    upper = tf32.rounded_to_tf32(matrices)
    assert 0 < ((upper - matrices) / matrices).abs().max() <= 2**-11
    assert (upper.mT @ upper - exact).abs().max() > 5e-5
