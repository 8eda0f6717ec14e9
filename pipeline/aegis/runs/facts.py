"""What a stage found out and later stages rely on: one frozen class per stage, kept as `facts` in its manifest.

This module alone knows the keys: a stage writes `XFacts(...).recorded()` and reads `XFacts.read(directory)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aegis.errors import IntegrityError
from aegis.messages.validation import describe_validation_error
from aegis.runs.manifest import MANIFEST, Manifest, read_manifest

F16 = "F16"
"""The type under which `ExportFacts.files` has the unquantized GGUF."""

DtypeName = Literal["float32", "bfloat16", "float16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Facts(_Frozen):
    """The facts of one stage's manifest."""

    stage: ClassVar[str]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The facts of a manifest that was read.

        Raises:
            IntegrityError: another stage wrote it, or its facts are not those that this stage records.
        """
        path = manifest.path or Path(MANIFEST)
        if manifest.stage != cls.stage:
            raise IntegrityError("manifest.other_stage", path=path, found=manifest.stage, stage=cls.stage)
        try:
            return cls.model_validate(manifest.facts)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, ("facts", *problem["loc"])))
            why = describe_validation_error(problem)
            raise IntegrityError("manifest.damaged", path=path, name=name, error=why) from None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The facts of a published directory.

        Raises:
            IntegrityError: there is no manifest, or as `of`.
        """
        return cls.of(read_manifest(directory))

    def recorded(self) -> dict[str, Any]:
        """As the manifest has them."""
        return self.model_dump(mode="json")


class DataFacts(BaseModel):
    """What became of the training data: `data.dataset.DataReport`, of which later stages read these."""

    model_config = ConfigDict(frozen=True, extra="allow")

    content_sha256: str
    train_rows: int
    heldout_rows: int
    truncated: int
    tokens: int
    trained_tokens: int


class KeptFacts(BaseModel):
    """What the kept text is made of: `data.kept.KeptReport`, of which later stages read these."""

    model_config = ConfigDict(frozen=True, extra="allow")

    source: str
    windows: int
    heldout_windows: int
    tokens: int


class TrainResult(_Frozen):
    """What is the same however often the training was interrupted."""

    steps: int
    heldout_loss: float | None
    keep_kl: float | None = None
    alpha: float
    gate: float
    trainable_parameters: int


class TrainFacts(Facts):
    """What train records, in the adapter's folder and in each checkpoint.

    Attributes:
        base_model: Hub id, folder or "demo".
        device, compute_dtype: the torch device type that trained, and the dtype that it computed in.
        processes: processes that shared the training.
        kept: None where keep was switched off.
        housekeeping: settings that change no weight, as the run was last given them.
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
    housekeeping: Mapping[str, Any]
    result: TrainResult | None = None


class AdapterFacts(TrainFacts):
    """The facts of a training that ended: those beside the adapter."""

    result: TrainResult


class Provenance(_Frozen):
    """Where a model comes from, in values that a manifest can keep.

    Attributes:
        base: Hub id, or the name of a folder.
        on_hub: whether `base` is a Hub id.
        revision: its commit.
        metadata: what the base's own card says of licence and language.
        data, settings: of the training; empty if they are not known.
        soul: α, g and the kind of rotation that was folded; empty if none was.
    """

    base: str
    on_hub: bool = False
    revision: str | None = None
    metadata: Mapping[str, Any] = Field(default_factory=dict)
    data: Mapping[str, Any] = Field(default_factory=dict)
    settings: Mapping[str, Any] = Field(default_factory=dict)
    soul: Mapping[str, Any] = Field(default_factory=dict)


class MergeFacts(Facts):
    """What merge records in the merged folder.

    Attributes:
        soul_step: optimizer steps after which the soul was saved.
        rotation: kind of R, "so8" or "dense".
        counter_scale: what took the factor 1/(1 + g): "norm" (the final norm), "head", or "" if the soul has none.
        determinant: −1 if R is a reflection.
        nf4_dtype, nf4_device: how the base weights went through NF4; None where they did not.
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
        """The facts of a model folder, None for one that merge did not write.

        Raises:
            IntegrityError: its manifest is damaged.
        """
        if not (folder / MANIFEST).is_file():
            return None
        manifest = read_manifest(folder)
        return cls.of(manifest) if manifest.stage == cls.stage else None


class ExportFacts(Facts):
    """What export-gguf records beside the GGUF files.

    Attributes:
        name: general.name in the files.
        context_tokens: the context to run them with.
        files: quantization type → file name; the one to run first, `F16` last and only if it was kept.
        fallback_tensors: quantization type → tensors that llama.cpp quantized to another type.
    """

    stage: ClassVar[str] = "export-gguf"

    name: str
    context_tokens: int = Field(gt=0)
    files: dict[str, str] = Field(min_length=1)
    fallback_tensors: dict[str, list[str]] = Field(default_factory=dict)

    @property
    def first(self) -> str:
        """Name of the file to run."""
        return next(iter(self.files.values()))

    @property
    def f16(self) -> str | None:
        """Name of the unquantized file, None if it was not kept."""
        return self.files.get(F16)

    @property
    def quantized(self) -> dict[str, str]:
        """Quantization type → file name, without the unquantized file."""
        return {quant: name for quant, name in self.files.items() if quant != F16}


class VerifyFacts(Facts):
    """What verify records beside its report."""

    stage: ClassVar[str] = "verify"

    ok: bool


class Recommended(_Frozen):
    """The file that a study recommends."""

    quant: str
    variant: str


class StudyFacts(Facts):
    """What quantize-study records beside its report; `name` is general.name of the measured files."""

    stage: ClassVar[str] = "quantize-study"

    name: str
    recommended: Recommended
