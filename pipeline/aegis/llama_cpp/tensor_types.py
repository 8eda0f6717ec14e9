"""Finds the type that llama.cpp's quantizer gives each tensor, by a dry run: of a GGUF, or before there is one.

Before there is one, the quantizer is asked about a file that declares the tensors and has no data: a converted
vocabulary, which holds the model's sizes too, followed by the tensors' names and shapes. The file is sparse: it takes
almost no disk space.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map

from aegis.errors import ToolError, UnsupportedModelError
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.gguf_header import aligned, metadata_end
from aegis.llama_cpp.process import run_tool
from aegis.llama_cpp.quantize import file_type_of, parse_tensor_type
from aegis.messages import bilingual, phrase

_WORKER = Path(__file__).with_name("_tensor_types_worker.py")
_SUFFIXES = (".weight", ".bias")
_COUNT_OFFSET = 8
"""Offset of the number of tensors: after the magic and the version."""
_TYPES = {1: (GGMLQuantizationType.F32, 4), 2: (GGMLQuantizationType.F16, 2)}
"""Type and bytes per weight that the converter gives a tensor, by its number of dimensions."""


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
    with TemporaryDirectory(prefix="aegis-types-") as scratch:
        part = Path(scratch) / "types.json"
        run_tool(
            bilingual("process.quantizer"),
            _WORKER,
            [str(source.absolute()), part.name, str(file_type_of(quant)), output_type, "1" if with_imatrix else ""],
            part=part,
            title=phrase("tensor_types.asking", quant=quant),
            fraction=lambda _line: None,
        )
        found: dict[str, str] = json.loads(part.read_text(encoding="utf-8"))
    if not found:
        raise ToolError("tensor_types.no_answer", source=source, quant=quant)
    return found


def planned_types(
    vocabulary: Path, shapes: Mapping[str, tuple[int, ...]], quant: str, *, output_tensor_type: str | None = None
) -> dict[str, str]:
    """Return the ggml type of each weight matrix after conversion and `quantize(…, quant)`.

    Args:
        vocabulary: a GGUF of the base's tokenizer without weights, as `convert(…, vocab_only=True)` makes it.
        shapes: the shapes of the merged folder's tensors, by name; norms and biases have one dimension.

    Returns:
        The types of the tensors with two dimensions, by their names in `shapes`.

    Raises:
        UnsupportedModelError: gguf has no name for a tensor, so the converter makes something else of it.
        ToolError: the quantizer refuses the file.
    """
    names = _names(vocabulary, shapes)
    with TemporaryDirectory(prefix="aegis-types-") as scratch:
        hollow = Path(scratch) / "hollow.gguf"
        _write_hollow(vocabulary, hollow, {names[name]: shape for name, shape in shapes.items()})
        types = tensor_types(hollow, quant, output_tensor_type=output_tensor_type)
    return {name: types[names[name]] for name, shape in shapes.items() if len(shape) == 2}


def _names(vocabulary: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    with GgufFile(vocabulary) as file:
        architecture = str(file.metadata["general.architecture"])
        layers = file.metadata[f"{architecture}.block_count"]
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    mapping = None if arch is None else get_tensor_name_map(arch, int(str(layers)))
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        other = None if mapping is None or len(shape) not in _TYPES else mapping.get_name(name, _SUFFIXES)
        if other is None or other in found.values():
            raise UnsupportedModelError("tensor_types.no_name", name=name, architecture=architecture)
        found[name] = other
    return found


def _write_hollow(vocabulary: Path, out: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    with vocabulary.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = bytearray(data[: metadata_end(data)])
    struct.pack_into("<Q", head, _COUNT_OFFSET, len(shapes))
    offset = 0
    for name, shape in shapes.items():
        kind, width = _TYPES[len(shape)]
        encoded = name.encode()
        head += struct.pack("<Q", len(encoded)) + encoded + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *shape[::-1], int(kind), offset)
        offset = aligned(offset + math.prod(shape) * width)
    with out.open("wb") as file:
        file.write(head)
        file.truncate(aligned(len(head)) + offset)
