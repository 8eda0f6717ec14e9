"""Tests that the LM head's chunks hold all rows, in few shapes and little memory."""

import pytest
import torch

from aegis.training.kernels.head_chunks import CHUNK_BYTES, head_chunks


@pytest.mark.parametrize("rows", [1, 7, 511, 512, 513, 2048])
@pytest.mark.parametrize("sides", [1, 2])
def test_chunks_hold_every_row_once_and_fit_in_memory(rows: int, sides: int) -> None:
    hidden, head = torch.empty(rows, 0), torch.empty(32_064, 0)
    chunks = list(head_chunks(hidden, head, sides=sides))
    assert [row for chunk in chunks for row in range(rows)[chunk]] == list(range(rows))
    assert all(4 * sides * len(range(rows)[chunk]) * 32_064 <= CHUNK_BYTES for chunk in chunks)


def test_rows_that_can_be_divided_are_divided_equally() -> None:
    """1,536 rows of two models need 6 chunks; 640 are divided into 4 where 3 would do; 511 have no equal parts."""
    head = torch.empty(32_064, 0)

    def heights(rows: int) -> list[int]:
        return [len(range(rows)[chunk]) for chunk in head_chunks(torch.empty(rows, 0), head, sides=2)]

    assert heights(1536) == [256] * 6
    assert heights(640) == [160] * 4
    assert heights(511) == [256, 255]
