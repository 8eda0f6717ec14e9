"""The settings of the stages after the training, one typed, frozen model per stage; and all stages by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from aegis.config.stage_config import MAX_THREADS, StageConfig
from aegis.config.study_settings import StudyConfig
from aegis.config.train_settings import TrainConfig


class MergeConfig(StageConfig):
    """`aegis merge`"""

    dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="dtype of the merged weights")
    base_weights: Literal["original", "dequantized"] = Field(
        "original",
        description="base weights to merge into: the original ones, or those that went through NF4 in training",
    )


class ExportConfig(StageConfig):
    """`aegis export-gguf`"""

    quant: tuple[str, ...] = Field(("Q4_K_M",), min_length=1, description="quantization types, one file each")
    keep_f16: bool = Field(False, description="keep the f16 GGUF the others are made from")
    name: str | None = Field(None, description="general.name of the GGUF and stem of its file name")
    head_quant: str | None = Field(
        None, description="quantization type of the LM head, e.g. q8_0 (default: the recipe's own)"
    )
    imatrix: Path | None = Field(None, description="importance matrix of this model, from quantize-study")
    system: str | None = Field(None, description="system message that Ollama gives the model if a chat has none")
    temperature: float | None = Field(
        None, ge=0, le=2, description="temperature that Ollama uses if a request names none"
    )
    llama_cpp_dir: Path | None = Field(None, description="llama.cpp checkout whose converter to use")


class VerifyConfig(StageConfig):
    """`aegis verify`"""

    text: Path | None = Field(None, description="UTF-8 text to compare on (default: the held-out rows of the data)")
    tokens: int = Field(2048, ge=64, description="tokens to run through every model")
    compare_bases: bool = Field(False, description="also measure the other choice of merge's --base-weights")
    max_kl_nf4: float | None = Field(None, gt=0, description="maximum mean KL of NF4 against 16 bit, nats per token")
    max_kl_quantized: float | None = Field(
        None, gt=0, description="maximum mean KL of the quantization, nats per token"
    )
    max_kept_kl: float | None = Field(
        None, gt=0, description="maximum mean KL(base || result) on kept text never trained on, nats per token"
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="device for the transformers models")
    threads: int | None = Field(None, ge=1, le=MAX_THREADS, description="number of threads for llama.cpp")
    llama_cpp_dir: Path | None = Field(None, description="llama.cpp checkout whose converter to use")
    paranoid: bool = Field(
        False, description="hash and convert everything again, even what this process has just written itself"
    )


SECTIONS: Mapping[str, type[StageConfig]] = {
    "train": TrainConfig,
    "merge": MergeConfig,
    "export": ExportConfig,
    "verify": VerifyConfig,
    "study": StudyConfig,
}
