"""The settings of a training: one typed, frozen model, with defaults and descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from aegis.config.presets import DEMO
from aegis.config.stage_config import StageConfig
from aegis.messages import phrase
from aegis.messages.validation import MAX_STEPS
from aegis.soul.gate import ALPHA_START, GOLDEN_RATIO
from aegis.soul.kind import Kind

AUTO, OFF = "auto", "off"
_STEPS = r"^(auto|off|[1-9]\d{0,8})$"  # up to MAX_STEPS


class TrainConfig(StageConfig):
    """`aegis train`"""

    base_model: str = Field(DEMO, description="Hub id or folder of the base (safetensors); 'demo' is the embedded one")
    revision: str | None = Field(None, description="Hub revision of the base; resolved to a commit and recorded")
    dataset: str = Field(
        DEMO, description="file (.jsonl, .txt, ...), folder, pattern or Hub id; 'demo' is the embedded one"
    )
    columns: tuple[str, ...] = Field(
        (),
        description="the data's own names for columns, e.g. question=instruction; notes=ignore leaves a column out; "
        "a name with a comma is in double quotes",
    )
    fold_system: bool = Field(
        False,
        description="where the chat template has no place for a system message, put it before the first question",
    )
    chat_template: Path | None = Field(
        None, description="file of a Jinja chat template to train with and to ship, in place of the base's own"
    )
    load_in: Literal["4bit", "16bit"] = Field("4bit", description="precision of the base: NF4 or 16 bit")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="device for training")

    rotation: Kind = Field("so8", description="kind of rotation: blocks of 8 x 8 (or larger ones), or one d x d")
    rotation_init: Literal["identity", "random"] = Field(
        "identity", description="first value of the rotation: the identity, which is the base itself, or a random one"
    )
    counter_scale: bool = Field(
        True, description="divide the mix h + g R h by 1 + g, so that the gate alone changes no logit"
    )
    rotation_map: Literal["exp", "cayley"] = Field(
        "exp", description="map from a skew-symmetric matrix to a rotation (blocks only)"
    )
    soul_learning_rate: float | None = Field(
        None, gt=0, description="learning rate of the soul (default: --learning-rate)"
    )
    alpha: Literal["scheduled", "then-learned", "learned"] = Field(
        "scheduled",
        description="how alpha changes: by schedule, by schedule then learned, or learned",
    )
    alpha_start: float = Field(ALPHA_START, description="alpha before the annealing")
    alpha_target: float = Field(GOLDEN_RATIO, description="alpha after the annealing")
    warmup_steps: int = Field(50, ge=0, description="optimizer steps during which alpha stays at its start")
    annealing_steps: int = Field(400, ge=0, description="optimizer steps over which alpha rises linearly")
    orthogonality_weight: float = Field(
        0.1, ge=0, description="weight of the orthogonality term in the logged loss (no effect on training)"
    )

    keep_weight: float = Field(
        1.0,
        ge=0,
        description="weight of KL(base || trained) on kept text, against forgetting (0 switches keep off)",
    )
    keep_every: int = Field(
        4, ge=1, description="forward passes on data per forward pass on kept text, of as many windows"
    )
    keep_windows: int = Field(192, ge=8, description="windows of kept text; the last eighth is never trained on")
    keep_source: Literal["auto", "written", "data", "both"] = Field(
        "auto",
        description="kept text: written by the base, --keep-data, or half of each; auto uses --keep-data if given",
    )
    keep_chats: bool = Field(
        True,
        description="half of what the base writes as kept text are chats; off: documents alone, for training that is "
        "meant to change how every question is answered",
    )
    keep_data: str | None = Field(
        None, description="file or Hub id of text on which the model should stay like its base"
    )

    lora_r: int = Field(16, ge=1, description="rank of the adapter")
    lora_alpha: float = Field(32, gt=0, description="scale of the adapter: lora_alpha / lora_r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the adapter")
    lora_targets: tuple[str, ...] = Field(
        (), description="module names to adapt, or all-linear (default: the attention projections)"
    )

    max_steps: int = Field(500, ge=1, le=MAX_STEPS, description="optimizer steps")
    epochs: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="passes over the data, in place of --max-steps (default: what --max-steps come to)",
    )
    finish_steps: str = Field(
        AUTO,
        description="number of last steps that compute with the weights of the quantized file (the first --quant), so "
        "that it loses little by rounding; auto: two fifths of the steps where that pays; off: none",
        pattern=_STEPS,
    )
    finish_keep: float = Field(
        2.0,
        gt=0,
        description="in the finish, kept text weighs this many times as much, to recover what rounding costs",
    )
    batch_size: int = Field(1, ge=1, le=4096, description="windows per forward pass")
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes per optimizer step")
    max_length: int = Field(512, ge=8, le=1 << 20, description="tokens per window")
    packing: bool = Field(True, description="pack several documents into a window, without attention between them")
    learning_rate: float = Field(2e-4, gt=0, description="learning rate of the adapter")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="schedule of the learning rates"
    )
    lr_warmup_steps: int = Field(
        0, ge=0, description="optimizer steps during which the learning rates rise linearly from zero"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the adapter (none for the soul)")
    max_grad_norm: float = Field(1.0, gt=0, description="maximum norm of the gradients; larger ones are scaled down")
    activation_checkpointing: Literal["auto", "on", "off", "offload"] = Field(
        "auto",
        description="how to save activation memory: on recomputes all layers, offload also moves their inputs to host "
        "memory, auto offloads or recomputes as many layers as needed, off keeps everything",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compile the decoder layers; auto compiles on a GPU when the run is long enough to save time",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto", description="record the step as CUDA graphs and replay it; auto records wherever possible"
    )
    gpu_memory_gib: float | None = Field(
        None,
        gt=0,
        description="limit of training to this many GiB of GPU memory, without CUDA's own overhead (default: all free "
        "memory)",
    )
    shard_base: bool = Field(
        False,
        description="with several processes: each holds a shard of every layer of the base, for a base too large "
        "for one GPU",
    )
    shard_processes: int | None = Field(
        None,
        ge=2,
        description="with --shard-base: number of processes that hold one base together, for example those of one "
        "machine (default: all)",
    )
    shard_offload: bool = Field(
        False,
        description="with --shard-base: the shards wait in host memory, for a base too large for all GPUs together",
    )
    seed: int = Field(42, ge=0, lt=2**31, description="random seed")

    logging_steps: int = Field(10, ge=1, description="steps between two rows of metrics.jsonl")
    sample_steps: str = Field(
        AUTO,
        description="steps between two samples of what the model answers to held-out questions, for aegis watch; "
        "auto: as often as 2 % of the time allows; off: none",
        pattern=_STEPS,
    )
    save_steps: int = Field(100, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="number of checkpoints to keep, the newest ones")
    keep_best: bool = Field(
        False,
        description="take the checkpoint with the lowest held-out loss for the result, and keep it (default: the last)",
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = Field(
        "none",
        description="also log metrics.jsonl to this tracker, whose package must be installed; it stays on this machine",
    )
    heldout_rows: int = Field(
        64, ge=0, description="rows held out for the validation loss, at most a tenth of all rows"
    )
    skip_bad: int = Field(0, ge=0, description="maximum number of broken data rows to leave out")

    @field_validator("finish_steps", "sample_steps", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

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
    def _map_needs_blocks(self) -> TrainConfig:
        if self.rotation == "dense" and self.rotation_map != "exp":
            raise ValueError(phrase("config.map_of_dense"))
        return self

    @model_validator(mode="after")
    def _keep_settings_agree(self) -> TrainConfig:
        if self.keep_data is None and self.keep_source in ("data", "both"):
            raise ValueError(phrase("config.keep_needs_data", source=self.keep_source))
        if self.keep_data is not None and self.keep_source == "written":
            raise ValueError(phrase("config.keep_leaves_data"))
        if self.keep_weight == 0 and (self.keep_data is not None or self.keep_source != "auto"):
            raise ValueError(phrase("config.keep_is_off"))
        return self

    @model_validator(mode="after")
    def _sharded_base_is_not_recorded(self) -> TrainConfig:
        if self.shard_base and self.cuda_graphs == "on":
            raise ValueError(phrase("config.sharded_is_not_recorded"))
        for name in ("shard_processes", "shard_offload"):
            if getattr(self, name) and not self.shard_base:
                raise ValueError(phrase("config.shards_of_no_base", name=name))
        return self
