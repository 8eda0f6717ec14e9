"""plan_verify: checks a finished run's files and estimates what verify needs; nothing is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aegis.config.settings import VerifyConfig
from aegis.model.shards import HEAD, ShardSet
from aegis.runs.facts import F16, ExportFacts
from aegis.runs.run import Run
from aegis.runs.space_needs import Need
from aegis.verification.gguf_checks import files_bytes
from aegis.verification.run_checks import published_part
from aegis.verification.space_estimate import memory_needed, scratch_needed


@dataclass(frozen=True)
class VerifyOutlook:
    """What verify would do in a finished run: the models in order, the tokens for each, disk space and memory."""

    models: tuple[str, ...]
    tokens: int
    scratch: Need
    memory: Need


def plan_verify(run: Run, config: VerifyConfig) -> VerifyOutlook:
    """Check every file of a run, and estimate what verify needs; nothing is written.

    Raises:
        IntegrityError: the run is not finished, or a file differs from its manifest.
    """
    run.require_finished()
    manifests = [published_part(stage, directory) for stage, directory in run.verified_parts.items()]
    shards = ShardSet.open(run.merged)
    weights = sum(math.prod(entry.shape) for entry in shards.entries.values())
    rebuilt = files_bytes(run.merged, shards, [F16])
    vocabulary = shards.entries[HEAD].shape[0]
    exported = ExportFacts.of(manifests[-1])
    models = ("trained", "wide", "merged", "f16", *exported.quantized)
    return VerifyOutlook(
        models, config.tokens,
        scratch_needed(config, run.root, len(models), vocabulary, rebuilt, keeps="kept" in manifests[0].inputs),
        memory_needed(config, weights),
    )  # fmt: skip
