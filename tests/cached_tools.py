"""The converter and the quantizer give the same bytes for the same input: tests of verify may ask each once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.runs.manifest import file_sha256
from aegis.verification import quantized_checks, structure

_converted: dict[str, bytes] = {}
_types: dict[tuple[object, ...], dict[str, str]] = {}


@pytest.fixture(scope="module")
def cached_tools() -> Iterator[None]:
    """Run verify's converter and quantizer once per input and process."""
    convert, tensor_types = structure.convert, quantized_checks.tensor_types

    def convert_once(model: Path, out: Path, **settings: Any) -> None:
        files = [path for path in sorted(model.iterdir()) if path.name != "manifest.json"]
        key = str([(path.name, file_sha256(path)) for path in files] + sorted(map(str, settings.items())))
        if key not in _converted:
            convert(model, out, **settings)
            _converted[key] = out.read_bytes()
        out.write_bytes(_converted[key])

    def types_once(source: Path, quant: str, **settings: Any) -> dict[str, str]:
        key = (file_sha256(source), quant, *settings.values())
        if key not in _types:
            _types[key] = tensor_types(source, quant, **settings)
        return _types[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "convert", convert_once)
        patch.setattr(quantized_checks, "tensor_types", types_once)
        yield
