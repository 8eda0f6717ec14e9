"""The typed facts that stages record in their manifests for later stages: one frozen class per stage.

Only this module knows the keys: a stage writes `XFacts(...).recorded()` and reads `XFacts.read(directory)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from aegis.messages import phrase
from aegis.runs.facts_base import Facts, Frozen, damaged
from aegis.runs.manifest import MANIFEST, Manifest, read_manifest

F16 = "F16"
"""The key of the unquantized GGUF in `ExportFacts.files`."""

DtypeName = Literal["float32", "bfloat16", "float16"]


class DataFacts(BaseModel):
    """The part of `data.dataset.DataReport` that later stages read; the manifest has all of it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    content_sha256: str
    train_rows: int
    heldout_rows: int
    truncated: int
    tokens: int
    trained_tokens: int


class KeptFacts(BaseModel):
    """The part of `data.kept.KeptReport` that later stages read; the manifest has all of it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    source: str
    windows: int
    heldout_windows: int
    tokens: int


class TrainResult(Frozen):
    """The result of a training; it does not depend on interruptions.

    Attributes:
        steps: the step whose adapter and soul were saved.
        heldout_loss: nats per trained token, after this step.
        keep_kl: KL(base ‖ trained) in the last step with kept text until then, nats per token; None without any.
    """

    steps: int
    heldout_loss: float | None
    keep_kl: float | None = None
    alpha: float
    gate: float
    trainable_parameters: int


class FinishFacts(Frozen):
    """The finish of a training, which computed with the weights of a quantized file.

    Attributes:
        steps: number of the last steps that belong to it.
        quant: the file's quantization type.
        types: the ggml type of each weight matrix, by its name in the merged folder.
    """

    steps: int
    quant: str
    types: Mapping[str, str]


class TrainFacts(Facts):
    """The facts that train records in the adapter's folder and in each checkpoint.

    Attributes:
        base_model: Hub id, folder or "demo".
        device, compute_dtype: the torch device type and the dtype of the training.
        processes: number of processes.
        kept: None if keep was switched off.
        quant: the type of the file that the training is for.
        finish: None if the training has no finish.
        housekeeping: the run's latest values of settings that do not change a weight.
        result: None in a checkpoint.
    """

    stage: ClassVar[str] = "train"

    base_model: str
    revision: str | None
    device: str
    compute_dtype: DtypeName
    processes: int
    data: DataFacts
    kept: KeptFacts | None = None
    quant: str | None = None
    finish: FinishFacts | None = None
    housekeeping: Mapping[str, Any]
    result: TrainResult | None = None


class AdapterFacts(TrainFacts):
    """The facts of a finished training, which are beside the adapter."""

    result: TrainResult


class Provenance(Frozen):
    """The origin of a model, in values that a manifest can keep.

    Attributes:
        base: Hub id, or the name of a folder.
        on_hub: whether `base` is a Hub id.
        revision: the base's commit.
        metadata: licence and language from the base's own card.
        data, settings: the training's data and settings; empty if they are not known.
        soul: α, g and the kind of rotation of the folded soul; empty if there is none.
        finish: the quantization type that the training's finish computed with; empty if it had none.
    """

    base: str
    on_hub: bool = False
    revision: str | None = None
    metadata: Mapping[str, Any] = Field(default_factory=dict)
    data: Mapping[str, Any] = Field(default_factory=dict)
    settings: Mapping[str, Any] = Field(default_factory=dict)
    soul: Mapping[str, Any] = Field(default_factory=dict)
    finish: str = ""


def result_name(base: str) -> str:
    """Return the name of what AEGIS makes of a base, which is a Hub id or a path."""
    return f"{Path(base).name}-AEGIS"


class MergeFacts(Facts):
    """The facts that merge records in the merged folder.

    Attributes:
        soul_step: number of optimizer steps after which the soul was saved.
        rotation: the kind of R, for example "so8" or "dense".
        counter_scale: the module that took the factor 1/(1 + g): "norm" (the final norm), "head", or "" if the soul has
            none.
        determinant: −1 if R is a reflection.
        nf4_dtype, nf4_device: dtype and device of the base weights' round trip through NF4; None without one.
    """

    stage: ClassVar[str] = "merge"

    base_model: str
    revision: str | None
    model_type: str
    alpha: float
    gate: float
    soul_step: int
    rotation: str
    counter_scale: Literal["norm", "head", ""]
    determinant: Literal[-1, 1]
    nf4_dtype: DtypeName | None = None
    nf4_device: str | None = None
    origin: Provenance

    @classmethod
    def known(cls, folder: Path) -> Self | None:
        """Read the facts of a model folder; None if merge did not write it.

        Raises:
            IntegrityError: its manifest is damaged.
        """
        if not (folder / MANIFEST).is_file():
            return None
        manifest = read_manifest(folder)
        return cls.of(manifest) if manifest.stage == cls.stage else None


class ExportFacts(Facts):
    """The facts that export-gguf records beside the GGUF files.

    Attributes:
        name: general.name in the files.
        context_tokens: the context to run them with.
        files: quantization type → file name; the file to run comes first, `F16` last and only if it was kept.
        fallback_tensors: quantization type → tensors that llama.cpp quantized to another type.
    """

    stage: ClassVar[str] = "export-gguf"

    name: str
    context_tokens: int = Field(gt=0)
    files: dict[str, str] = Field(min_length=1)
    fallback_tensors: dict[str, list[str]] = Field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the facts of a manifest.

        Raises:
            IntegrityError: as of every stage's facts; or a GGUF file is none of the manifest's.
        """
        facts = super().of(manifest)
        if lost := [name for name in facts.files.values() if name not in manifest.files]:
            raise damaged(manifest, "facts.files", phrase("manifest.missing", name=lost[0]))
        return facts

    @property
    def first(self) -> str:
        """The name of the file to run."""
        return next(iter(self.files.values()))

    @property
    def f16(self) -> str | None:
        """The name of the unquantized file; None if it was not kept."""
        return self.files.get(F16)

    @property
    def quantized(self) -> dict[str, str]:
        """Quantization type → file name, without the unquantized file."""
        return {quant: name for quant, name in self.files.items() if quant != F16}


class VerifyFacts(Facts):
    """The facts that verify records beside its report."""

    stage: ClassVar[str] = "verify"

    ok: bool


class Recommended(Frozen):
    """The file that a study recommends."""

    quant: str
    variant: str


class StudyFacts(Facts):
    """The facts that quantize-study records beside its report; `name` is general.name of the measured files."""

    stage: ClassVar[str] = "quantize-study"

    name: str
    recommended: Recommended
