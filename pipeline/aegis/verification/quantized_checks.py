"""Checks a quantized GGUF against the f16 file that it was made from: keys, types and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aegis.config.settings import ExportConfig
from aegis.llama_cpp import GgufFile, fallback_tensors, file_type_of, read_importance, tensor_types
from aegis.messages import bilingual
from aegis.runs.manifest import file_sha256
from aegis.verification.gguf_equality import refuse_other_keys, refuse_other_tensors
from aegis.verification.quantized_rows import Importance, compare_rows
from aegis.verification.run_checks import Checks

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION at the pinned commit."""


@dataclass(frozen=True)
class Recipe:
    """The settings that a run's files were quantized with.

    Attributes:
        head_quant: the requested type of `output.weight`; None for llama.cpp's choice.
        with_imatrix: whether an importance matrix was used.
        importance: its values; None if its file is not found.
    """

    head_quant: str | None
    with_imatrix: bool
    importance: Importance | None

    @classmethod
    def of(cls, config: ExportConfig, inputs: Mapping[str, str], *candidates: Path) -> Recipe:
        """Make the recipe of what the export's manifest records.

        Args:
            candidates: paths where the importance matrix may be; the first with the recorded hash is read.
        """
        wanted = inputs.get("imatrix")
        found = [path for path in candidates if wanted and path.is_file() and file_sha256(path) == wanted]
        importance = read_importance(found[0]) if found else None
        return cls(config.head_quant, wanted is not None, importance)

    @property
    def exact(self) -> bool:
        """Whether the quantizer can make the same bytes again."""
        return not self.with_imatrix or self.importance is not None


def check_quantized_file(checks: Checks, path: Path, quant: str, f16: Path, recipe: Recipe) -> None:
    """Check that keys, types and rows are those of llama.cpp's quantizer; rows only if keys and types are right.

    Args:
        f16: the converter's output from the merged folder.
    """
    before = len(checks.done)
    with (
        checks.check(bilingual("quantized.keys", name=path.name), "quantize"),
        GgufFile(path) as found,
        GgufFile(f16) as reference,
    ):
        refuse_other_keys(
            found,
            reference,
            {"general.file_type": file_type_of(quant), "general.quantization_version": QUANTIZATION_VERSION},
        )
    with (
        checks.check(bilingual("structure.types", name=path.name), "quantize") as detail,
        GgufFile(path) as found,
        GgufFile(f16) as reference,
    ):
        types = tensor_types(f16, quant, output_tensor_type=recipe.head_quant, with_imatrix=recipe.with_imatrix)
        refuse_other_tensors(found, reference, types)
        counted = Counter(info.type for info in found.tensors.values())
        first = bilingual(
            "structure.types_found",
            counted=", ".join(f"{count} {name}" for name, count in counted.most_common()),
            fallbacks=len(fallback_tensors(found, quant, output_tensor_type=recipe.head_quant)),
        )
        detail(first.followed_by("".join(f"\n{info.name}: {info.type}" for info in found.tensors.values())))
    if not all(check.ok for check in checks.done[before:]):
        return
    with (
        checks.check(bilingual("quantized.rows", name=path.name), "quantize") as detail,
        GgufFile(path) as found,
        GgufFile(f16) as reference,
    ):
        compared = compare_rows(found, reference, recipe.importance, exact=recipe.exact)
        detail(bilingual("quantized.compared", rows=compared.rows, asked=compared.asked))
        if compared.ties:
            detail(bilingual("quantized.ties", count=sum(compared.ties.values())))
        if not recipe.exact:
            detail(bilingual("quantized.no_imatrix"))
