"""Finds the type that llama.cpp's quantizer gives each tensor of a file, by a dry run of the quantizer."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from aegis.errors import ToolError
from aegis.llama_cpp.process import run_tool
from aegis.llama_cpp.quantize import file_type_of, parse_tensor_type
from aegis.messages import bilingual, phrase

_WORKER = Path(__file__).with_name("_recipe_worker.py")


def tensor_types(
    source: Path, quant: str, *, output_tensor_type: str | None = None, with_imatrix: bool = False
) -> dict[str, str]:
    """Return the ggml type of every tensor after `quantize(source, …, quant)`, by the tensor's name.

    Args:
        with_imatrix: whether there is an importance matrix; the mixtures of the smallest types depend on it.

    Raises:
        ToolError: the quantizer refuses the file.
    """
    output_type = "" if output_tensor_type is None else str(parse_tensor_type(output_tensor_type))
    with TemporaryDirectory(prefix="aegis-recipe-") as scratch:
        part = Path(scratch) / "types.json"
        run_tool(
            bilingual("process.quantizer"),
            _WORKER,
            [str(source.absolute()), part.name, str(file_type_of(quant)), output_type, "1" if with_imatrix else ""],
            part=part,
            title=phrase("recipe.asking", quant=quant),
            fraction=lambda _line: None,
        )
        found: dict[str, str] = json.loads(part.read_text(encoding="utf-8"))
    if not found:
        raise ToolError("recipe.no_answer", source=source, quant=quant)
    return found
