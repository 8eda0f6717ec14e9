"""How much is taken of a stranger's file: all parsers' bounds in one place, each far above what honest files have.

Beyond a bound a file is refused before it is parsed; tests/faults/test_limits.py has a case at each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG_BYTES = 1 << 20
"""config.json, generation_config.json, adapter_config.json: a few kB, where each layer is named 100 kB."""
INDEX_BYTES = 16 << 20
"""The header of a safetensors file and the index of several: 9 MB for the 90,000 tensors of a model of 671 B."""
TOKENIZER_BYTES = 128 << 20
"""Any other text file of a model folder: the largest tokenizer.json, of 262,144 tokens, has 33 MB."""

LAYERS = 1024
EXPERTS = 4096
EXPERTS_OF_ALL_LAYERS = 1 << 16
VOCABULARY = 1 << 20
"""Tokens, and what a token's id stays below: four times the largest vocabulary there is."""
CONFIG_NUMBER = 1 << 31
"""Any other number of a config."""

ADAPTER_PATTERNS = 256
"""Regular expressions in rank_pattern or alpha_pattern; names without one are not counted."""
SOUL_PICKLE_BYTES = 1 << 20
"""The pickle in the original's soul.pt, whose tensors lie beside it: 2 kB."""

ROW_BYTES = 8 << 20
"""A row of data: beyond it, a file is broken far more often than a row is so long."""
ROW_FIELDS = 1 << 14
"""Columns of a CSV file."""
DOCUMENT_BYTES = 1 << 30
"""A JSON document that is not JSON Lines, all of which has to be in memory."""
PARQUET_CHUNK_BYTES = 1 << 29
"""A column of a row group, unpacked: 512 MiB, where writers make row groups of 128 MiB or less."""

GGUF_HEADER_BYTES = 1 << 27
GGUF_ARRAY_ITEMS = VOCABULARY
GGUF_ITEMS = 1 << 22
"""Values of all arrays together: vocabulary, scores, types and merges of the largest vocabulary are a million."""


class TooLarge(ValueError):
    """A file is larger than what is taken of its kind."""


def read_text(path: Path, most_bytes: int) -> str:
    """A UTF-8 file of at most so many bytes.

    Raises:
        TooLarge, OSError, UnicodeDecodeError: as it says.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise TooLarge(f"{path.name}: > {most_bytes} bytes")
    return content.decode("utf-8")


def read_json(path: Path, most_bytes: int = CONFIG_BYTES) -> Any:
    """A JSON file of at most so many bytes.

    Raises:
        ValueError, OSError, RecursionError: too large, or no JSON.
    """
    return json.loads(read_text(path, most_bytes))
