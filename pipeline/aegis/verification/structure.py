"""Checks a run stage by stage without a forward pass: makes each stage's files again from the stage before it.

The first stage that fails ends the checks: everything made from it would differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig, MergeConfig
from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime, convert
from aegis.merging.base_weights import RoundTrip
from aegis.merging.merged_weights import DTYPES, MergePlan
from aegis.messages import Bilingual, bilingual, phrase
from aegis.model.adapter import load_adapter
from aegis.model.base import Base, read_config
from aegis.model.provenance import provenance_of_merge
from aegis.model.shards import ShardSet
from aegis.runs import disk, known_hashes
from aegis.runs.facts import F16, ExportFacts, MergeFacts
from aegis.runs.manifest import Manifest
from aegis.runs.run import IMATRIX, Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul
from aegis.verification import (
    gguf_equality,
    merged_checks,
    run_checks,
    sidecar_checks,
)
from aegis.verification.gguf_checks import files_bytes
from aegis.verification.quantized_checks import Recipe, check_quantized_file
from aegis.verification.run_checks import Checks
from aegis.verification.token_parity import TokenIds, compare_tokens


@dataclass(frozen=True)
class Structure:
    """A run, and the base that it was made from.

    Attributes:
        manifests: the manifests of "train", "merge" and "convert".
        tokenizer: the base's own; a tokenizer that lost tokens on the way must not be compared with itself.
        converted: where export left its f16 GGUF, if it ran in this process.
        scratch: path for the f16 GGUF that the converter makes again from the merged folder.
        tree: a llama.cpp checkout for the converter; None for the pinned one.
    """

    run: Run
    base: Base
    manifests: Mapping[str, Manifest]
    checks: Checks
    tokenizer: Any
    converted: Path | None
    scratch: Path
    tree: Path | None

    def examine_merged(self) -> None:
        """Check what was trained and merged, in order, until a check fails."""
        self._in_order(self._check_trained, self._check_merged, self._check_merged_sidecars)

    def examine_exported(self, own_texts: list[str]) -> None:
        """Check what was converted and quantized, in order, until a check fails.

        Args:
            own_texts: texts whose token ids are compared, beside the hard strings.

        Raises:
            EnvironmentFault: the disk has no space for the f16 file.
        """
        self._in_order(
            self._check_converted,
            self._check_quantized,
            self._check_export_sidecars,
            lambda: self._check_tokens(own_texts),
        )

    def _in_order(self, *stages: Callable[[], None]) -> None:
        for check in stages:
            if self.checks.ok:
                check()

    @cached_property
    def reference(self) -> Path:
        """The f16 GGUF to compare with: export's own, if this process has made it and it is unchanged, or a new one."""
        found = self.run.gguf / self.exported.f16 if self.exported.f16 else self.converted
        known = found is not None and found.is_file() and known_hashes.noted(found, "converted_from")
        return found if found and known == self.manifests["convert"].inputs["model"] else self.scratch

    @property
    def is_converted(self) -> bool:
        """Whether the f16 GGUF to compare with is there already, as this process converted it."""
        return self.reference != self.scratch

    def remove_reference(self) -> None:
        """Remove the f16 GGUF to compare with, unless it is one of the run's own files."""
        if self.exported.f16 is None:
            self.reference.unlink(missing_ok=True)

    @property
    def exported(self) -> ExportFacts:
        return ExportFacts.of(self.manifests["convert"])

    @property
    def merge_config(self) -> MergeConfig:
        return recorded_config(self.manifests["merge"], MergeConfig)

    @property
    def base_weights(self) -> str:
        """The base weights that the adapter was merged into."""
        return self.merge_config.base_weights

    def plan(self, round_trip: RoundTrip | None = None) -> MergePlan:
        """Plan the merge again, into the base's own weights or their round trip."""
        adapter, soul = load_adapter(self.run.adapter), load_soul(self.run.adapter / SOUL_FILE)
        return MergePlan.make(self.base, adapter, soul, DTYPES[self.merge_config.dtype], round_trip)

    def _check_trained(self) -> None:
        with self.checks.check(bilingual("verify.base"), "train"):
            wanted, found = str(self.manifests["train"].inputs.get("base")), self.base.weights_hash
            if wanted != found:
                raise IntegrityError("verify.other_base", folder=self.base.folder, found=found[:12], wanted=wanted[:12])
        with self.checks.check(bilingual("verify.orthogonal"), "train"):
            if load_soul(self.run.adapter / SOUL_FILE).reflection:
                raise IntegrityError("verify.reflection", path=self.run.adapter / SOUL_FILE)

    def _check_merged(self) -> None:
        with self.checks.check(bilingual("verify.fits"), "merge"):
            round_trip, skipped = self._round_trip_of_merge()
            plan, merged = self.plan(round_trip), ShardSet.open(self.run.merged)
            merged_checks.check_tensors(self.checks, plan, merged, skipped=skipped)
        run_checks.check_stock(self.checks, self.run.merged)

    def _check_merged_sidecars(self) -> None:
        plan = self.plan()
        origin = provenance_of_merge(self.base, self.run.adapter, plan.soul)
        sidecar_checks.check_merged_sidecars(self.checks, plan, origin, self.run.merged, self.manifests["merge"])

    def _check_converted(self) -> None:
        """Convert the folder once more, compare the f16 GGUF with the folder, and compare the run's f16 GGUF with it.

        A file that this process has converted is not converted a second time. The report does not say so: the same
        command, killed and started again, leaves the same bytes.
        """
        merged, exported = self.run.merged, self.exported
        with self.checks.check(bilingual("verify.converted"), "convert"):
            if not self.is_converted:
                needed = files_bytes(merged, ShardSet.open(merged), [F16])
                disk.require_space(self.reference, needed, phrase("disk.gguf_files"))
                convert(merged, self.reference, model_name=exported.name, tree=self.tree)
        if not self.checks.ok:
            return
        run_checks.check_converted(self.checks, self.reference, merged, read_config(merged), self.tokenizer)
        if exported.f16 is not None:
            gguf_equality.check_same(self.checks, self.run.gguf / exported.f16, self.reference)

    def _check_quantized(self) -> None:
        manifest, exported = self.manifests["convert"], self.exported
        config = recorded_config(manifest, ExportConfig)
        recipe = Recipe.of(config, manifest.inputs, self.run.study / IMATRIX)
        with self.checks.check(bilingual("quantized.asked"), "quantize"):
            asked = [quant for quant in config.quant if quant != F16]
            if list(exported.quantized) != asked:
                raise IntegrityError("quantized.not_asked", asked=", ".join(asked), found=", ".join(exported.quantized))
        for quant, name in exported.quantized.items():
            check_quantized_file(self.checks, self.run.gguf / name, quant, self.reference, recipe)

    def _check_export_sidecars(self) -> None:
        sidecar_checks.check_export_sidecars(self.checks, self.run.merged, self.run.gguf, self.manifests["convert"])

    def _check_tokens(self, own_texts: list[str]) -> None:
        ours: TokenIds | None = None
        for name in self.exported.files.values():
            with self.checks.check(bilingual("verify.token_ids", name=name), "convert") as detail:
                ours = ours or TokenIds.of(self.tokenizer, own_texts)
                with Runtime(self.run.gguf / name, vocab_only=True) as runtime:
                    parity = compare_tokens(ours, runtime)
                if parity.wrong:
                    raise IntegrityError(
                        "verify.other_ids",
                        wrong_count=len(parity.wrong),
                        compared=parity.compared,
                        wrong=Bilingual.joined("\n", parity.wrong[:5]),
                    )
                for line in (bilingual("verify.same_ids", compared=parity.compared), *parity.remarks):
                    detail(line)

    def _round_trip_of_merge(self) -> tuple[RoundTrip | None, frozenset[str]]:
        """Return merge's NF4 round trip, and the weights for which this machine cannot repeat it.

        bitsandbytes' kernels on a GPU and on a CPU may differ in the last digit.
        """
        if self.base_weights != "dequantized":
            return None, frozenset()
        facts = MergeFacts.of(self.manifests["merge"])
        if facts.nf4_device is None or facts.nf4_dtype is None:
            raise IntegrityError("merged.no_round_trip", merged=self.run.merged)
        made, device = RoundTrip.of(self.base, self.run.adapter), torch.device(facts.nf4_device)
        made = replace(made, dtype=DTYPES[facts.nf4_dtype], device=device)
        if device.type == "cuda" and not torch.cuda.is_available():
            return None, made.weights
        return made, frozenset()
