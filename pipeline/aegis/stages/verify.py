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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.background import Background
from aegis.config.settings import TrainConfig, VerifyConfig
from aegis.data.training_set import load_training_set
from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile
from aegis.merging.base_weights import RoundTrip
from aegis.messages import bilingual, phrase
from aegis.model.base import Base
from aegis.model.device import require_device
from aegis.model.empty_model import load_config
from aegis.model.shards import HEAD, ShardSet
from aegis.model.trained_base import trained_base
from aegis.report.plots.divergence import draw_divergence
from aegis.runs import known_hashes
from aegis.runs.facts import AdapterFacts, ExportFacts, VerifyFacts
from aegis.runs.manifest import Manifest, read_manifest
from aegis.runs.publish import discard_leftovers, publishing
from aegis.runs.run import DIVERGENCE_PLOT, REPORT, Run
from aegis.verification import divergence, run_checks, token_sequences
from aegis.verification.comparison import Comparison
from aegis.verification.heldout_text import MIN_TOKENS, Sample, sequence_limit
from aegis.verification.llama_passes import LlamaPasses
from aegis.verification.retention import Witnesses, kept_windows, sentence
from aegis.verification.run_checks import Checks
from aegis.verification.structure import Structure
from aegis.verification.transformers_passes import TransformersPasses
from aegis.verification.verdict import Verdict

_MAKERS = ("train", "train", "merge", "convert", "quantize")
"""The stage that made the next model, by the number of models that have run."""


def verify(run: Run, config: VerifyConfig, *, converted: Path | None = None) -> Verdict:
    """Check a finished run, and write verify/report.json and verify/divergence.png into it.

    Args:
        converted: where export left its f16 file, if it ran in this process.

    Raises:
        IntegrityError: the run is not finished, so there is nothing to compare.
        DataError: the text is too short.
        UsageError: there is a bound on kept text, but no kept text.
    """
    run.require_finished()
    if converted is None:
        discard_leftovers(run.verify)  # a killed run's f16 file takes the space that the next one needs
    with known_hashes.trusting(paranoid=config.paranoid):
        return _verified(run, config, converted)


def _verified(run: Run, config: VerifyConfig, converted: Path | None) -> Verdict:
    checks = Checks()
    run_checks.check_published(checks, run)
    manifests: dict[str, Manifest] = {}
    verdict = Verdict(0, tuple(checks.done), (), {})
    if checks.ok:  # otherwise a failed part is named already, and may not even load
        manifests = {stage: read_manifest(directory) for stage, directory in run.verified_parts.items()}
        with divergence.scratch(run.verify) as work:
            verdict = _Examiner.begin(run, config, manifests, checks, work, converted).examine()
    manifest = Manifest(
        stage="verify",
        config=config.model_dump(mode="json", exclude={"llama_cpp_dir"}),
        inputs={stage: found.identity for stage, found in manifests.items()},
        facts=VerifyFacts(ok=verdict.failed_stage is None).recorded(),
    )
    with publishing(run.verify, manifest, overwrite=True) as staging:
        report = json.dumps(verdict.as_json(), indent=2, ensure_ascii=False) + "\n"
        (staging.path / REPORT).write_text(report, encoding="utf-8")
        if verdict.steps:
            draw_divergence(verdict.steps, staging.path / DIVERGENCE_PLOT)
    return verdict


@dataclass
class _Examiner:
    """One verification of a run."""

    run: Run
    config: VerifyConfig
    base: Base
    tokenizer: Any
    manifests: dict[str, Manifest]
    checks: Checks
    work: Path
    sample: Sample
    witnesses: Witnesses
    structure: Structure
    quantized: dict[str, Path]
    round_trip: RoundTrip | None
    comparison: Comparison

    @classmethod
    def begin(
        cls,
        run: Run,
        config: VerifyConfig,
        manifests: dict[str, Manifest],
        checks: Checks,
        work: Path,
        converted: Path | None,
    ) -> _Examiner:
        exported = ExportFacts.of(manifests["convert"])
        base = trained_base(run.adapter)
        tokenizer = base.tokenizer()
        limit = sequence_limit(ShardSet.open(run.merged).entries[HEAD].shape[0], exported.context_tokens)
        if config.text is not None:
            paragraphs = token_sequences.read_text(config.text, tokenizer, MIN_TOKENS)
            sample = Sample.of_text(paragraphs, tokenizer, config.tokens, limit)
        else:
            data = load_training_set(TrainConfig.model_validate(manifests["train"].config), tokenizer)
            # without held-out rows, trained rows are used: for rounding this makes no difference
            rows = token_sequences.first_pieces(data.heldout or data.train, 2 * config.tokens)
            sample = Sample.of_chats(rows, tokenizer, config.tokens, limit, trained=not data.heldout)
        witnesses = Witnesses.of(work, sample, kept_windows(run, config.max_kept_kl, checks), config.tokens, limit)
        round_trip = RoundTrip.of(base, run.adapter) if config.compare_bases else None
        device = require_device(config.device)
        quantized = {quant: run.gguf / name for quant, name in exported.quantized.items()}
        scratch = work / "reference-F16.gguf"
        structure = Structure(run, base, manifests, checks, tokenizer, converted, scratch, config.llama_cpp_dir)
        return cls(
            run, config, base, tokenizer, manifests, checks, work, sample, witnesses, structure, quantized,
            round_trip, Comparison(work, sample, load_config(run.merged).num_hidden_layers, device),
        )  # fmt: skip

    def examine(self) -> Verdict:
        """Check the structure, and compare the models if it is right; on a GPU, llama.cpp runs beside both."""
        if self.checks.ok:
            in_llama = self._in_llama()
            with in_llama.beside() if self.comparison.device.type == "cuda" else nullcontext():
                if self.structure.is_converted:
                    in_llama.allow("f16")
                self.structure.examine(self.sample.own_texts)
                if self.checks.ok:
                    # before, llama.cpp might end the process at a file that its quantizer did not make
                    in_llama.allow("f16", *self.quantized)
                    return self._compared(in_llama)
        return Verdict(0, tuple(self.checks.done), tuple(self.comparison.steps), {})

    def _compared(self, in_llama: LlamaPasses) -> Verdict:
        try:
            return self.compare_models(in_llama)
        except IntegrityError as error:
            maker = _MAKERS[min(len(self.comparison.models), len(_MAKERS) - 1)]
            with self.checks.check(bilingual("verify.every_model"), maker):
                raise error
        return Verdict(0, tuple(self.checks.done), tuple(self.comparison.steps), {})

    def compare_models(self, in_llama: LlamaPasses) -> Verdict:
        """Run the models and compare their logits, which are on the disk."""
        device, models, compared = self.comparison.device, self.comparison.models, self.sample.compared
        in_transformers = TransformersPasses(self.structure, self.comparison, self.witnesses, device, self.round_trip)
        with self.comparison.shown(5 + (self.round_trip is not None) + len(self.quantized)):
            in_transformers.run()
            of_base = divergence.compare(models["trained"], models["base"]).mean_kl
            perplexity = {"base": divergence.perplexity(models.pop("base"))}
            bases = in_transformers.compare(self.config.max_kl_nf4)
            retained = self.witnesses.measured(self.config.max_kept_kl)
            try:
                in_llama.finish()
            finally:
                models.update(in_llama.recorded)
            Background(self.structure.remove_reference)  # freeing so many bytes takes more than a second
            self._compare_in_llama(in_transformers.finished_as)
            perplexity |= {name: divergence.perplexity(recording) for name, recording in models.items()}
            nearness = tuple(self.comparison.nearness(name, of_base) for name in self.quantized)
        vocab_size = models["trained"].logits.shape[1]
        return Verdict(
            tokens=sum(map(len, compared)),
            checks=tuple(self.checks.done),
            steps=tuple(self.comparison.steps),
            perplexity=perplexity,
            retained=retained,
            bases=bases,
            nearness=nearness,
            vocab_size=vocab_size,
            summary=sentence(retained, perplexity, self.sample.origin, vocab_size),
        )

    def _in_llama(self) -> LlamaPasses:
        kept = ExportFacts.of(self.manifests["convert"]).f16
        return LlamaPasses(
            {"f16": self.run.gguf / kept if kept else self.structure.reference, **self.quantized},
            self.sample.compared,
            self.work,
            self.comparison.device,
            threads=self.config.threads,
            end_token=self.tokenizer.eos_token_id,
            advance=self.comparison.advance,
        )

    def _compare_in_llama(self, finished_as: str | None) -> None:
        self.comparison.rounding("merged", "f16", "convert", torch.float16)
        for name in self.quantized:
            self.comparison.step("f16", name, "quantize", self.config.max_kl_quantized)
            if name == finished_as:
                self._compare_with_trained(name)

    def _compare_with_trained(self, name: str) -> None:
        """Hold a file to the trained model, unless export rounded it otherwise than the training's last steps did."""
        finish = AdapterFacts.of(self.manifests["train"]).finish
        with GgufFile(self.quantized[name]) as file:
            is_other_head = finish is not None and file.tensors["output.weight"].type != finish.types[HEAD]
        if is_other_head or "imatrix" in self.manifests["convert"].inputs:
            progress.say(phrase("verify.rounded_otherwise", name=name))
            self.comparison.step("trained", name, "quantize", None)
        else:
            self.comparison.finish(name)
