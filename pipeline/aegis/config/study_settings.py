"""The settings of a quantization study."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from aegis.config.stage_config import MAX_THREADS, StageConfig
from aegis.messages import phrase

VARIANTS = ("plain", "imatrix", "head-q8_0", "imatrix+head-q8_0")
"""The variants of a quantization: plain, with an importance matrix, with an 8-bit LM head, or with both."""


class StudyConfig(StageConfig):
    """`aegis quantize-study`"""

    quant: tuple[str, ...] = Field(
        ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"), min_length=1, description="quantization types to compare"
    )
    variants: tuple[str, ...] = Field(
        VARIANTS[:3], min_length=1, description=f"variants of each type: {', '.join(VARIANTS)}"
    )
    text: Path | None = Field(
        None,
        description="UTF-8 text: three quarters for the importance matrix, the rest to measure on (default: the run's "
        "training rows and held-out rows)",
    )
    tokens: int = Field(2048, ge=64, description="tokens to run through every file")
    calibration_tokens: int = Field(16384, ge=256, description="maximum number of tokens for the importance matrix")
    tolerance: float = Field(
        0.02, gt=0, description="mean KL, nats per token, by which the recommended file may exceed the best one"
    )
    keep: bool = Field(False, description="keep every GGUF that was measured")
    threads: int | None = Field(None, ge=1, le=MAX_THREADS, description="number of threads for llama.cpp")
    llama_cpp_dir: Path | None = Field(None, description="llama.cpp checkout whose converter to use")

    @field_validator("variants")
    @classmethod
    def _known(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        for variant in variants:
            if variant not in VARIANTS:
                raise ValueError(phrase("config.unknown_variant", variant=variant, known=", ".join(VARIANTS)))
        return tuple(dict.fromkeys(variants))
