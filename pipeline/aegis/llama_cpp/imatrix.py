"""Measures an importance matrix with llama.cpp's imatrix: the size of the inputs of each weight's columns on a text.

With it, a quantizer rounds important columns more carefully. The file is a GGUF with its own type: for each weight it
has the sums of squares, `<name>.in_sum2`, and the number of rows, `<name>.counts`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis.errors import IntegrityError
from aegis.llama_cpp.convert import refuse_damaged
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.imatrix_build import WORKER, imatrix_tool
from aegis.llama_cpp.process import published, run_tool
from aegis.llama_cpp.repacking import has_amx
from aegis.llama_cpp.threads import default_threads
from aegis.messages import bilingual, phrase

MIN_CHUNK_TOKENS = 32
"""The tool needs at least 16 tokens per chunk, and two chunks."""

_SUMS, _COUNTS = ".in_sum2", ".counts"
_CHUNKS = re.compile(r"computing over (\d+) chunks")
_CHUNK = re.compile(r"\[(\d+)\]\d+\.\d{4}")
# the tool prints "[1]7.1234,[2]6.5678," without an end of line
_LINE_END = rb"[\r\n]+|(?<=\.\d{4}),"


def measure_importance(gguf: Path, text: Path, out: Path, *, chunk_tokens: int, threads: int | None = None) -> None:
    """Run `text` through `gguf` and write the importance matrix at `out`, which appears only when it is complete.

    Args:
        gguf: an f16 GGUF; it runs on the CPU.
        text: a UTF-8 file of at least two chunks, in the folder of `out`: the tool records its name, and a path would
            record where it was. "<|end|>" and the like are read as special tokens.
        out: the file to write; an existing file is replaced at the end.
        chunk_tokens: tokens per chunk.
        threads: number of threads; the physical cores if None.

    Raises:
        ToolError: the tool did not compile, failed, or wrote no matrix.
        EnvironmentFault: there is no compiler, no space or no permission.
    """
    tool = imatrix_tool()
    gguf, out = gguf.absolute(), out.absolute()
    assert text.absolute().parent == out.parent, "the text is in the matrix's folder"
    with published(out) as part:
        # fmt: off
        arguments = [
            str(tool), "-m", str(gguf), "-f", text.name, "-o", part.name, "--output-format", "gguf",
            "-c", str(chunk_tokens), "-b", str(chunk_tokens), "-ub", str(chunk_tokens),
            "-t", str(threads or default_threads()),
            "-ngl", "0", "-fit", "off", "--parse-special", *(["--no-repack"] if has_amx() else []),
        ]
        # fmt: on
        run_tool(
            bilingual("process.imatrix"),
            WORKER,
            arguments,
            part=part,
            title=phrase("process.measuring"),
            fraction=_Progress(),
            # the tool would read settings, even a model, from LLAMA_ARG_*
            environment={name: None for name in os.environ if name.startswith("LLAMA_")},
            line_end=_LINE_END,
        )
        refuse_damaged(part, bilingual("process.imatrix"))
        read_importance(part)


class _Progress:
    """Reads from the tool's output how many chunks there are, and which one is done."""

    def __init__(self) -> None:
        self._chunks = 0

    def __call__(self, line: str) -> float | None:
        if match := _CHUNKS.search(line):
            self._chunks = int(match[1])
            return 0.0
        match = _CHUNK.fullmatch(line)
        return int(match[1]) / self._chunks if match and self._chunks else None


def read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the mean squares of the inputs of each weight's columns, (experts · columns,) float32, by weight name.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is damaged, or not an importance matrix.
    """
    found: dict[str, NDArray[np.float32]] = {}
    with GgufFile(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise IntegrityError("imatrix.other_type", path=path, general_type=file.metadata.get("general.type"))
        for name in file.tensors:
            if not name.endswith(_SUMS):
                continue
            weight = name.removesuffix(_SUMS)
            # without experts, the file leaves a dimension of 1 out
            sums, counts = (np.asarray(file.tensor(weight + part), np.float32).ravel() for part in (_SUMS, _COUNTS))
            if sums.size % counts.size or not np.isfinite(sums).all() or (sums < 0).any():
                raise IntegrityError("imatrix.no_sums", path=path, name=name)
            rows = np.repeat(counts, sums.size // counts.size)
            # llama-quantize uses 1 for an expert that no token went through
            means = np.where(rows > 0, sums / np.maximum(rows, 1), 1)
            found[weight] = means.astype(np.float32)
    if not found:
        raise IntegrityError("imatrix.empty", path=path)
    return found


def refuse_foreign(path: Path, gguf: Path) -> None:
    """Refuse an importance matrix of another model than `gguf`, as far as names and sizes show it.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is damaged, not an importance matrix, or has a weight that `gguf` does not have in this size.
    """
    importance = read_importance(path)
    wrong = []
    with GgufFile(gguf) as file:
        for name, values in importance.items():
            info = file.tensors.get(name)
            if info is None:
                wrong.append(phrase("imatrix.not_in_model", name=name))
                continue
            columns = info.shape[-1] * (info.shape[0] if len(info.shape) == 3 else 1)
            if len(values) != columns:
                wrong.append(phrase("imatrix.other_columns", name=name, found=len(values), wanted=columns))
    if wrong:
        raise IntegrityError(
            "imatrix.other_model",
            path=path,
            wrong_count=len(wrong),
            weights=len(importance),
            wrong="\n".join(wrong[:5]),
        )
