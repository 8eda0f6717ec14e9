"""verify: proves that a run's files come from its training, measures how near they are to it, and names a failed stage.

It checks the bytes first (verification/structure.py). If they are right, the same token ids go through five models, and
neighbouring models are compared:

    trained     the base in training's precision (NF4), adapter, live soul; after a finish, the file's weights
    wide        the base in 16 bit, adapter, live soul; the base's own weights, or their NF4 round trip, as merged
    merged      the merged folder in stock transformers, without AEGIS's code
    f16         its f16 GGUF in llama.cpp
    quantized   each quantized GGUF in llama.cpp

wide → merged → f16 is rounding and has bounds; trained → wide and f16 → quantized are changes of precision, and are
reported, with a bound if the user sets one. After a finish, trained → quantized has bounds too. Each quantized file
must be nearer to the trained model than the base is. With `compare_bases`, the merge with the other base weights is
measured too: its weights replace the merged model's in memory, one by one, and are never on the disk.
"""

from __future__ import annotations

import json
from pathlib import Path

from aegis.config.settings import VerifyConfig
from aegis.report.plots.divergence import draw_divergence
from aegis.runs import known_hashes
from aegis.runs.facts import VerifyFacts
from aegis.runs.manifest import Manifest, read_manifest
from aegis.runs.publish import discard_leftovers, publishing
from aegis.runs.run import DIVERGENCE_PLOT, REPORT, Run
from aegis.verification import divergence, run_checks
from aegis.verification.early_half import EarlyHalf
from aegis.verification.examination import Examination
from aegis.verification.run_checks import Checks
from aegis.verification.verdict import Verdict


def verify(run: Run, config: VerifyConfig, *, converted: Path | None = None, early: EarlyHalf | None = None) -> Verdict:
    """Check a finished run, and write verify/report.json and verify/divergence.png into it.

    Args:
        converted: where export left its f16 file, if it ran in this process.
        early: the first half of this verification, if it was begun before.

    Raises:
        IntegrityError: the run is not finished, so there is nothing to compare.
        DataError: the text is too short.
        UsageError: there is a bound on kept text, but no kept text.
    """
    run.require_finished()
    if converted is None:
        discard_leftovers(run.verify)  # a killed run's f16 file takes the space that the next one needs
    with known_hashes.trusting(paranoid=config.paranoid):
        return _verified(run, config, converted, early)


def _verified(run: Run, config: VerifyConfig, converted: Path | None, early: EarlyHalf | None) -> Verdict:
    checks = Checks()
    run_checks.check_published(checks, run)
    manifests: dict[str, Manifest] = {}
    verdict = Verdict(0, tuple(checks.done), (), {})
    if checks.ok:  # otherwise a failed part is named already, and may not even load
        manifests = {stage: read_manifest(directory) for stage, directory in run.verified_parts.items()}
        with divergence.scratch(run.verify) as work:
            examination = (early and early.examination()) or Examination.begin(run, config, manifests, work)
            examination.checks.done[:0] = checks.done
            examination.of_export(manifests, converted)
            verdict = examination.examine()
    manifest = Manifest(
        stage="verify",
        config=config.model_dump(mode="json", exclude={"llama_cpp_dir"}),
        inputs={stage: found.exact_identity for stage, found in manifests.items()},
        facts=VerifyFacts(ok=verdict.failed_stage is None).recorded(),
    )
    with publishing(run.verify, manifest, overwrite=True) as staging:
        report = json.dumps(verdict.as_json(), indent=2, ensure_ascii=False) + "\n"
        (staging.path / REPORT).write_text(report, encoding="utf-8")
        if verdict.steps:
            draw_divergence(verdict.steps, staging.path / DIVERGENCE_PLOT)
    return verdict
