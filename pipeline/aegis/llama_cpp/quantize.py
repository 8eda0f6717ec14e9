"""Quantizes an f16 GGUF with llama.cpp's `llama_model_quantize`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from gguf import GGMLQuantizationType

from aegis.errors import UsageError
from aegis.llama_cpp.convert import refuse_damaged
from aegis.llama_cpp.imatrix import refuse_foreign
from aegis.llama_cpp.process import published, run_tool
from aegis.messages import bilingual, phrase

QUANT_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "BF16": 32,
        "Q8_0": 7,
        "Q6_K": 18,
        "Q5_K_M": 17,
        "Q5_K_S": 16,
        "Q5_1": 9,
        "Q5_0": 8,
        "Q4_K_M": 15,
        "Q4_K_S": 14,
        "Q4_1": 3,
        "Q4_0": 2,
        "IQ4_NL": 25,
        "IQ4_XS": 30,
        "Q3_K_L": 13,
        "Q3_K_M": 12,
        "Q3_K_S": 11,
        "Q2_K": 10,
    }
)
"""llama.cpp's names and llama_ftype numbers of the file types that need no importance matrix."""

IMATRIX_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "IQ3_XS": 22,
        "IQ3_XXS": 23,
        "Q2_K_S": 21,
        "IQ2_M": 29,
        "IQ2_S": 28,
        "IQ2_XS": 20,
        "IQ2_XXS": 19,
        "IQ1_M": 31,
        "IQ1_S": 24,
    }
)
"""The file types that llama.cpp refuses to make without an importance matrix: the result would be useless."""
_ALL = {**QUANT_TYPES, **IMATRIX_TYPES}

# Complete lines only: an error is printed on the rest of its tensor's line.
_TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\] .* MiB")
_WORKER = Path(__file__).with_name("_quantize_worker.py")


def parse_quant(name: str) -> str:
    """Return the canonical name of a quantization ("q4_k_m" is Q4_K_M).

    Raises:
        UsageError: it is unknown; the message has the nearest name.
    """
    canonical = name.strip().upper().replace("-", "_")
    if canonical in _ALL:
        return canonical
    nearest = get_close_matches(canonical, _ALL, n=1, cutoff=0.5)
    raise UsageError(
        "quantize.unknown_type",
        name=name,
        known=", ".join(_ALL),
        hint=phrase("quantize.nearest", name=nearest[0]) if nearest else phrase("quantize.usual"),
    )


def refuse_without_imatrix(quant: str, imatrix: Path | None) -> None:
    """Refuse a quantization that needs an importance matrix and has none.

    Raises:
        UsageError: there is none.
    """
    if quant in IMATRIX_TYPES and imatrix is None:
        raise UsageError("quantize.needs_imatrix", quant=quant)


def quantize(
    source: Path,
    out: Path,
    quant: str,
    *,
    threads: int | None = None,
    output_tensor_type: str | None = None,
    imatrix: Path | None = None,
) -> None:
    """Quantize `source` to `quant` at `out`, which appears only when it is complete.

    llama.cpp's mixtures do not change: Q4_K_M gives `output.weight`, which has the soul, the type Q6_K.

    Args:
        source: an f32, f16 or bf16 GGUF.
        out: the file to write; an existing file is replaced at the end.
        quant: a name in QUANT_TYPES or IMATRIX_TYPES, in upper or lower case.
        threads: number of threads; all cores if None.
        output_tensor_type: another ggml type for `output.weight`, for example "q8_0".
        imatrix: an importance matrix of `source`; it does not cover `output.weight`.

    Raises:
        UsageError: the type is unknown or needs an importance matrix, or a file does not exist.
        IntegrityError: the importance matrix is damaged, or belongs to another model.
        ToolError: the quantizer failed; the error has its last lines.
        EnvironmentFault: there is no space or no permission.
    """
    quant = parse_quant(quant)
    refuse_without_imatrix(quant, imatrix)
    output_type = "" if output_tensor_type is None else str(parse_tensor_type(output_tensor_type))
    source, out = source.absolute(), out.absolute()
    if not source.is_file():
        raise UsageError("quantize.no_source", source=source)
    if source.resolve() == out.resolve():
        raise UsageError("quantize.onto_itself", out=out)
    if imatrix is not None:
        refuse_foreign(imatrix, source)
    matrix = str(imatrix.absolute()) if imatrix else ""
    with published(out) as part:
        run_tool(
            bilingual("process.quantizer"),
            _WORKER,
            [str(source), part.name, str(_ALL[quant]), output_type, str(threads or 0), matrix],
            part=part,
            title=phrase("process.quantizing", quant=quant),
            fraction=_fraction,
        )
        refuse_damaged(part, bilingual("process.quantizer"))


def file_type_of(quant: str) -> int:
    """Return llama.cpp's number of a file type, which it writes as `general.file_type`.

    Raises:
        UsageError: it is unknown.
    """
    return _ALL[parse_quant(quant)]


def parse_tensor_type(name: str) -> int:
    """Return ggml's number of a tensor type.

    Raises:
        UsageError: it is unknown.
    """
    try:
        return int(GGMLQuantizationType[name.upper()])
    except KeyError:
        raise UsageError("quantize.unknown_tensor_type", name=name) from None


def _fraction(line: str) -> float | None:
    match = _TENSOR_LINE.fullmatch(line)
    return int(match[1]) / int(match[2]) if match and int(match[2]) else None
