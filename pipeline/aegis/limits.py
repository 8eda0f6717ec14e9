"""The size limits of all parsers of untrusted files, each far above the sizes of ordinary files.

A file beyond a limit is refused before it is parsed; tests/faults/test_limits.py has a case for each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CONFIG_BYTES = 1 << 20
"""config.json, generation_config.json, adapter_config.json: usually a few kB; 100 kB if every layer is named."""
INDEX_BYTES = 16 << 20
"""The header of a safetensors file and the index of several: 9 MB for the 90,000 tensors of a model of 671 B."""
TOKENIZER_BYTES = 128 << 20
"""Any other text file of a model folder: the largest tokenizer.json, of 262,144 tokens, has 33 MB."""
TEXT_GROWTH = 10_000
"""Characters that a tokenizer may make of one; known ones make some thousands, such as ALBERT's by its rules."""
TOKEN_CHARACTERS = 10_000
"""Characters of a token; known ones have up to some hundreds of spaces."""

LAYERS = 256
EXPERTS = 4096
EXPERTS_OF_ALL_LAYERS = 1 << 16
VOCABULARY = 1 << 20
"""Maximum tokens, and upper bound of a token's id: four times the largest existing vocabulary."""
CONFIG_NUMBER = 1 << 31
"""Any other number of a config."""

ADAPTER_PATTERNS = 256
"""Regular expressions in rank_pattern or alpha_pattern; names without one are not counted."""
SOUL_PICKLE_BYTES = 1 << 20
"""The pickle in the original's soul.pt, without its tensors: usually 2 kB."""
RECORD_BYTES = 4 << 20
"""manifest.json, report.json and answers.json of a run: 40 kB for a merged model of 100 shards."""

ROW_BYTES = 8 << 20
"""A row of data: if a row is longer, the file is almost always broken."""
ROW_FIELDS = 1 << 14
"""Columns of a CSV file."""
UNPACKED_GROWTH = 1000
UNPACKED_FREE_BYTES = 1 << 26
UNPACKED_BYTES = 1 << 40
"""Bytes that a .gz or .zst may unpack to: per byte of it, after the first 64 MiB, and in all. Text gives 3 to 30; gzip
can give 1,032, Zstandard more than 10,000."""
PARQUET_BYTES = 1 << 31
PARQUET_SECONDS = 120.0
"""Memory of the process that unpacks a Parquet file, and its time for each batch: a row group has 128 MiB or less."""

GGUF_HEADER_BYTES = 1 << 26
"""15 MB for a vocabulary of 262,144 tokens."""
GGUF_ITEMS = 1 << 21
"""Values of all arrays together: tokens, scores, types and merges of the largest vocabulary are 1.3 million."""
GGUF_KEYS = 1 << 12
GGUF_TENSORS = 1 << 17
GGUF_STRING_BYTES = 1 << 24


class TooLarge(ValueError):
    """A file is larger than the limit of its kind."""


def read_text(path: Path, max_bytes: int) -> str:
    """Read a UTF-8 file of at most `max_bytes`.

    Raises:
        TooLarge: it is larger.
        OSError, UnicodeDecodeError: it cannot be read, or is not UTF-8.
    """
    with path.open("rb") as file:
        # not the maximum: Python reserves what it is asked to read
        content = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    if len(content) > max_bytes:
        raise TooLarge(f"{path.name}: > {max_bytes} bytes")
    return content.decode("utf-8")


def read_json(path: Path, max_bytes: int = CONFIG_BYTES) -> Any:
    """Read a JSON file of at most `max_bytes`.

    Raises:
        ValueError: it is too large, not JSON, or nested too deeply.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_text(path, max_bytes))
    except RecursionError:
        raise ValueError(f"{path.name}: nested too deeply") from None
