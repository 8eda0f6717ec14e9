"""What can be set: one typed, frozen model per stage, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from aegis.messages import phrase
from aegis.soul.gate import ALPHA_START, GOLDEN_RATIO

DEMO = "demo"
"""The name of the embedded default, as base model and as data set."""


class StageConfig(BaseModel):
    # defaults are validated too: an int that stands for a float would be another value once it was read back from JSON
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes true for 1
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(phrase("config.switch"))
        return value


class TrainConfig(StageConfig):
    """`aegis train`"""

    base_model: str = Field(DEMO, description="Hub id or folder of the base (safetensors); 'demo' is the embedded one")
    revision: str | None = Field(None, description="Hub revision of the base; resolved to a commit and recorded")
    dataset: str = Field(
        DEMO, description="file (.jsonl, .txt, ...), folder, pattern or Hub id; 'demo' is the embedded one"
    )
    columns: tuple[str, ...] = Field(
        (),
        description="the data's own names for columns, e.g. question=instruction; notes=ignore leaves a column out",
    )
    fold_system: bool = Field(
        False,
        description="where the chat template has no place for a system message, put it before the first question",
    )
    load_in: Literal["4bit", "16bit"] = Field("4bit", description="hold the base in NF4 or in 16 bit")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="where to train")

    rotation: Literal["so8", "dense"] = Field("so8", description="blocks of 8 x 8, or one d x d rotation")
    rotation_init: Literal["identity", "random"] = Field(
        "identity", description="first value of the rotation: the identity, which is the base itself, or a random one"
    )
    counter_scale: bool = Field(
        True, description="divide the mix h + g R h by 1 + g, so that the gate alone changes no logit"
    )
    rotation_map: Literal["exp", "cayley"] = Field("exp", description="skew matrix to rotation, of a so8 soul")
    soul_learning_rate: float | None = Field(None, gt=0, description="of the soul; as --learning-rate if not given")
    alpha: Literal["scheduled", "then-learned", "learned"] = Field(
        "scheduled",
        description="who moves alpha: the schedule, the schedule and then the optimizer, the optimizer",
    )
    alpha_start: float = Field(ALPHA_START, description="alpha before annealing")
    alpha_target: float = Field(GOLDEN_RATIO, description="alpha after annealing")
    warmup_steps: int = Field(50, ge=0, description="steps with alpha at its start")
    annealing_steps: int = Field(400, ge=0, description="steps over which alpha rises in a straight line")
    orthogonality_weight: float = Field(
        0.1, ge=0, description="weight of |R'R - I|^2 in the loss that is told; it has no gradient"
    )

    keep_weight: float = Field(
        1.0,
        ge=0,
        description="weight of KL(base || trained) on kept text, which holds off forgetting; 0 switches it off",
    )
    keep_every: int = Field(
        4, ge=1, description="forward passes of the data per forward pass of kept text, which takes as many windows"
    )
    keep_windows: int = Field(
        192, ge=8, description="windows of kept text; the last eighth of them is never trained on"
    )
    keep_source: Literal["auto", "written", "data", "both"] = Field(
        "auto",
        description="kept text: what the base writes itself, --keep-data, half and half; auto takes the data if given",
    )
    keep_data: str | None = Field(None, description="file or Hub id of text whose answers are to stay the base's own")

    lora_r: int = Field(16, ge=1, description="rank of the adapter")
    lora_alpha: float = Field(32, gt=0, description="scale of the adapter: lora_alpha / lora_r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the adapter")
    lora_targets: tuple[str, ...] = Field(
        (), description="module names to adapt, or all-linear (default: the attention projections)"
    )

    max_steps: int = Field(500, ge=1, description="optimizer steps")
    batch_size: int = Field(1, ge=1, description="windows a forward pass")
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes an optimizer step")
    max_length: int = Field(512, ge=8, description="tokens a window")
    packing: bool = Field(True, description="fill windows with several documents, kept apart")
    learning_rate: float = Field(2e-4, gt=0, description="of the adapter")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="course of the learning rates")
    weight_decay: float = Field(0.0, ge=0, description="of the adapter; the soul has none")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    activation_checkpointing: Literal["auto", "on", "off", "offload"] = Field(
        "auto",
        description="recompute activations to save memory, offload: and keep what remains in the host's; "
        "auto parks some layers' there, and parks or recomputes more as the GPU's memory asks for",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the decoder layers; auto does on a GPU if the run is long enough to gain by it"
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto", description="record the step as CUDA graphs and replay it; auto does wherever that works"
    )
    gpu_memory_gib: float | None = Field(
        None,
        gt=0,
        description="GiB of a GPU's memory that training may hold, for a GPU that has other work too; what CUDA itself "
        "takes comes on top; all that is free if not given",
    )
    shard_base: bool = Field(
        False,
        description="with several processes: each holds a shard of every layer of the base, for a base too large "
        "for one GPU",
    )
    seed: int = Field(42, ge=0, lt=2**31, description="of everything random")

    logging_steps: int = Field(10, ge=1, description="steps between two rows of metrics.jsonl")
    save_steps: int = Field(100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="newest checkpoints that stay on disk")
    report_to: Literal["none", "tensorboard", "trackio"] = Field(
        "none", description="show the rows of metrics.jsonl there too; the package of that name must be installed"
    )
    heldout_rows: int = Field(64, ge=0, description="rows kept out for the held-out loss, at most a tenth of all")
    skip_bad: int = Field(0, ge=0, description="broken data rows to leave out before giving up")

    @model_validator(mode="after")
    def _alpha_moves(self) -> TrainConfig:
        if (
            self.alpha != "learned"
            and self.alpha_start != self.alpha_target
            and not (self.warmup_steps + self.annealing_steps)
        ):
            raise ValueError(phrase("config.alpha_jumps"))
        return self

    @model_validator(mode="after")
    def _map_is_of_blocks(self) -> TrainConfig:
        if self.rotation == "dense" and self.rotation_map != "exp":
            raise ValueError(phrase("config.map_of_dense"))
        return self

    @model_validator(mode="after")
    def _keep_is_of_one_mind(self) -> TrainConfig:
        if self.keep_data is None and self.keep_source in ("data", "both"):
            raise ValueError(phrase("config.keep_needs_data", source=self.keep_source))
        if self.keep_data is not None and self.keep_source == "written":
            raise ValueError(phrase("config.keep_leaves_data"))
        if self.keep_weight == 0 and (self.keep_data is not None or self.keep_source != "auto"):
            raise ValueError(phrase("config.keep_is_off"))
        return self

    @model_validator(mode="after")
    def _split_layers_are_recomputed(self) -> TrainConfig:
        if self.shard_base and ("on" in (self.compile, self.cuda_graphs) or self.activation_checkpointing == "off"):
            raise ValueError(phrase("config.split_recomputes"))
        return self


class MergeConfig(StageConfig):
    """`aegis merge`"""

    dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="of the merged weights")
    base_weights: Literal["original", "dequantized"] = Field(
        "original",
        description="merge into the base's own weights, or into what NF4 made of them in training",
    )


class ExportConfig(StageConfig):
    """`aegis export-gguf`"""

    quant: tuple[str, ...] = Field(("Q4_K_M",), min_length=1, description="quantization types, one file each")
    keep_f16: bool = Field(False, description="keep the f16 GGUF the others are made from")
    name: str | None = Field(None, description="general.name of the GGUF and stem of its file name")
    head_quant: str | None = Field(None, description="type of the LM head instead of the quantization's own, e.g. q8_0")
    imatrix: Path | None = Field(None, description="importance matrix of this model, as quantize-study makes one")
    llama_cpp_dir: Path | None = Field(None, description="your own llama.cpp checkout for the converter")


class VerifyConfig(StageConfig):
    """`aegis verify`"""

    text: Path | None = Field(None, description="UTF-8 text to compare on, instead of the data's held-out rows")
    tokens: int = Field(2048, ge=64, description="tokens that go through every model")
    compare_bases: bool = Field(
        False, description="measure both choices of merge's --base-weights on this text, whichever was merged"
    )
    max_kl_nf4: float | None = Field(None, gt=0, description="bound on the mean KL of NF4 against 16 bit, nats")
    max_kl_quantized: float | None = Field(None, gt=0, description="bound on the mean KL of quantization, nats")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="where transformers runs")
    threads: int | None = Field(None, ge=1, description="threads for llama.cpp")
    llama_cpp_dir: Path | None = Field(None, description="your own llama.cpp checkout for the converter")


VARIANTS = ("plain", "imatrix", "head-q8_0", "imatrix+head-q8_0")
"""How a quantization can be made: as it is, with an importance matrix, with the LM head kept at 8 bits, both."""


class StudyConfig(StageConfig):
    """`aegis quantize-study`"""

    quant: tuple[str, ...] = Field(
        ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"), min_length=1, description="quantization types to compare"
    )
    variants: tuple[str, ...] = Field(
        VARIANTS[:3], min_length=1, description=f"ways to make each of them: {', '.join(VARIANTS)}"
    )
    text: Path | None = Field(
        None,
        description="UTF-8 text of yours: three quarters of it make the importance matrix, the rest is measured on; "
        "the run's training rows and held-out rows if not given",
    )
    tokens: int = Field(2048, ge=64, description="tokens that go through every file")
    calibration_tokens: int = Field(
        16384, ge=256, description="tokens that the importance matrix is made from, at most"
    )
    tolerance: float = Field(
        0.02, gt=0, description="mean KL in nats by which the recommended file may be worse than the best one"
    )
    keep: bool = Field(False, description="keep every GGUF that was measured")
    threads: int | None = Field(None, ge=1, description="threads for llama.cpp")
    llama_cpp_dir: Path | None = Field(None, description="your own llama.cpp checkout for the converter")

    @field_validator("variants")
    @classmethod
    def _known(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        for variant in variants:
            if variant not in VARIANTS:
                raise ValueError(phrase("config.unknown_variant", variant=variant, known=", ".join(VARIANTS)))
        return tuple(dict.fromkeys(variants))


SECTIONS: Mapping[str, type[StageConfig]] = {
    "train": TrainConfig,
    "merge": MergeConfig,
    "export": ExportConfig,
    "verify": VerifyConfig,
    "study": StudyConfig,
}
