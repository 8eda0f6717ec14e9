"""merge: merges the adapter into the base's 16-bit weights and folds the soul into the head, in one pass over shards.

A slab of rows is read, widened to float32, updated, checked, cast once and written; the complete model is never in
memory. The base is hashed in the same pass, unless this process knows its hash, and the result is published only if
adapter and soul were trained on this base. The result is a stock model folder: the base's architecture, tokenizer files
and config, an untied LM head, no code, and no tensors of a soul.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from aegis import __version__, progress
from aegis.config.settings import MergeConfig
from aegis.errors import IntegrityError
from aegis.hub.client import CARD
from aegis.merging.base_weights import RoundTrip
from aegis.merging.merged_weights import DTYPES, MergePlan
from aegis.merging.rewrite_shards import rewrite_shards
from aegis.messages import phrase
from aegis.model.adapter import WEIGHTS, load_adapter
from aegis.model.base import TEMPLATE, Base, find_base, weights_hash_of
from aegis.model.load import dtype_name
from aegis.model.provenance import provenance_of_merge
from aegis.model.shard_writer import write_index
from aegis.model.shards import INDEX
from aegis.model.sidecars import write_sidecars
from aegis.model.trained_base import TEMPLATE_INPUT, with_template_of
from aegis.report.card import CardFile, merged_card
from aegis.runs import disk
from aegis.runs.facts import MergeFacts, Provenance, TrainFacts, result_name
from aegis.runs.foreign import refuse_inputs
from aegis.runs.manifest import MANIFEST, Manifest, file_sha256, finished, read_manifest
from aegis.runs.publish import Staging, publishing, refuse_existing
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import SoulRecord, load_soul


@dataclass(frozen=True)
class MergeInputs:
    """The inputs of a merge.

    Attributes:
        base_model: Hub id, folder or "demo".
        adapter: folder with adapter_config.json and adapter_model.safetensors.
        soul: soul.safetensors; None for the one in the adapter's folder.
        revision: Hub revision of the base.
    """

    base_model: str
    adapter: Path
    soul: Path | None = None
    revision: str | None = None

    @classmethod
    def from_run(cls, run: Run) -> MergeInputs:
        """Make the inputs from a run's adapter, which records its base.

        Raises:
            IntegrityError: the run has no finished adapter.
        """
        facts = TrainFacts.read(run.adapter)
        return cls(facts.base_model, run.adapter, None, facts.revision)


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge: tensors and bytes written, weights changed by the adapter, g of the folded soul."""

    out: Path
    tensors: int
    bytes: int
    adapted: int
    gate: float
    untied: bool


def merge(
    inputs: MergeInputs,
    out: Path,
    config: MergeConfig,
    *,
    overwrite: bool = False,
    reuse: bool = False,
    dry_run: bool = False,
) -> MergeReport:
    """Merge and fold into a new folder `out`.

    Args:
        overwrite: replace `out` when the new folder is complete.
        reuse: with `overwrite`, keep `out` if it has the same settings and inputs.
        dry_run: stop before the first byte is written; all checks are made.

    Raises:
        UsageError: `out` exists or holds an input, an input does not exist, or the adapter has a feature that cannot be
            merged.
        UnsupportedModelError: the base's family loses its head in conversion.
        IntegrityError: adapter or soul belong to another base, a value is not finite or does not fit the dtype.
        EnvironmentFault: the disk is too small.
    """
    refuse_existing(out, overwrite=overwrite)
    soul_path, plan = _plan(inputs, config)
    base, soul = plan.base, plan.soul
    refuse_inputs(out, base.folder, inputs.adapter, soul_path)
    origin = provenance_of_merge(base, inputs.adapter, soul)
    template = {} if base.chat_template is None else {TEMPLATE_INPUT: file_sha256(inputs.adapter / TEMPLATE)}
    manifest = Manifest(
        stage="merge",
        config=config.model_dump(mode="json"),
        inputs={"adapter": file_sha256(inputs.adapter / WEIGHTS), "soul": file_sha256(soul_path)} | template,
        facts=_facts(plan, origin).recorded(),
    )
    report = MergeReport(out, plan.tensors, plan.out_bytes, len(plan.adapter.updates), soul.gate, plan.untied)
    if reuse and (out / MANIFEST).is_file():
        known = replace(manifest, inputs={**manifest.inputs, "base": base.weights_hash})
        if finished(out, known) is not None:
            return report
    disk.require_space(out, plan.out_bytes, phrase("disk.merged_model"))
    if dry_run:
        return report
    with publishing(out, manifest, overwrite=overwrite) as staging:
        staging.inputs["base"], files = _rewrite(plan, staging)
        _check_base_hash(base, staging.inputs["base"], inputs.adapter, soul_path, soul)
        write_sidecars(base, staging.path, config.dtype)
        card = merged_card(origin, result_name(origin.base), files, __version__)
        (staging.path / CARD).write_text(card, encoding="utf-8", newline="\n")
    return report


def _plan(inputs: MergeInputs, config: MergeConfig) -> tuple[Path, MergePlan]:
    """Return the soul's file and the merge plan; refuse inputs that do not fit each other."""
    adapter = load_adapter(inputs.adapter)
    soul_path = inputs.soul or inputs.adapter / SOUL_FILE
    if inputs.soul is None and not soul_path.is_file():
        raise IntegrityError("merge.no_soul", adapter=inputs.adapter, soul_file=SOUL_FILE)
    soul = load_soul(soul_path)
    base = with_template_of(find_base(inputs.base_model, inputs.revision), inputs.adapter)
    round_trip = RoundTrip.of(base, inputs.adapter) if config.base_weights == "dequantized" else None
    plan = MergePlan.make(base, adapter, soul, DTYPES[config.dtype], round_trip)
    _refuse_folding_twice(base, soul_path, soul)
    if soul.reflection:
        progress.warn(phrase("merge.reflection", soul_path=soul_path))
    if plan.scaled == "head":
        progress.say(phrase("merge.counter_scale_in_head", model_type=base.config["model_type"]))
    return soul_path, plan


def _facts(plan: MergePlan, origin: Provenance) -> MergeFacts:
    base, soul, round_trip = plan.base, plan.soul, plan.round_trip
    return MergeFacts(
        base_model=base.name,
        revision=base.revision,
        model_type=base.config["model_type"],
        alpha=soul.alpha,
        gate=soul.gate,
        soul_step=soul.step,
        rotation=soul.kind,
        counter_scale=plan.scaled,
        determinant=-1 if soul.reflection else 1,
        nf4_dtype=dtype_name(round_trip.dtype) if round_trip else None,
        nf4_device=round_trip.device.type if round_trip else None,
        origin=origin,
    )


def _refuse_folding_twice(base: Base, soul_path: Path, soul: SoulRecord) -> None:
    if soul.base_hash:
        return
    if MergeFacts.known(base.folder) is not None:
        raise IntegrityError("merge.folded_twice", base_folder=base.folder, soul_path=soul_path)
    progress.warn(phrase("merge.unknown_base", soul_path=soul_path, base_name=base.name))


def _check_base_hash(base: Base, found: str, adapter: Path, soul_path: Path, soul: SoulRecord) -> None:
    claims = {str(soul_path): soul.base_hash}
    if (adapter / MANIFEST).is_file():
        claims[str(adapter)] = read_manifest(adapter).inputs.get("base", "")
    for source, claimed in claims.items():
        if claimed and claimed != found:
            raise IntegrityError(
                "merge.other_base", source=source, base_name=base.name, claimed=claimed[:12], found=found[:12]
            )


def _rewrite(plan: MergePlan, staging: Staging) -> tuple[str, list[CardFile]]:
    """Write every shard; return the hash of the base's weights as they were read, and the written files."""
    digests, files = [], []
    with (
        progress.task(phrase("merge.merging"), plan.out_bytes, "B") as bar,
        closing(rewrite_shards(plan, staging.path, bar.advance)) as shards,
    ):
        for file, written in zip(plan.base.shards.files, shards, strict=True):
            staging.hashed(file.name, written.bytes, written.sha256)
            digests.append(written.source_sha256)
            files.append(CardFile(file.name, written.bytes, written.sha256))
    if (plan.base.folder / INDEX).is_file():
        weight_map = {name: file.name for file in plan.base.shards.files for name, _ in plan.outputs(file)}
        write_index(staging.path, weight_map, plan.out_bytes)
    return weights_hash_of(digests), files
