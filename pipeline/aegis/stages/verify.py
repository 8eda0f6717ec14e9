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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis.config.settings import TrainConfig, VerifyConfig
from aegis.data.training_set import load_training_set
from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime
from aegis.merging.base_weights import RoundTrip
from aegis.merging.merged_weights import DTYPES
from aegis.messages import bilingual, phrase
from aegis.model.base import Base, read_config
from aegis.model.device import require_device
from aegis.model.live import live_model
from aegis.model.load import Precision, load_base
from aegis.model.trained_base import trained_base
from aegis.report.plots.divergence import draw_divergence
from aegis.runs import noted
from aegis.runs.facts import AdapterFacts, ExportFacts, VerifyFacts
from aegis.runs.manifest import Manifest, read_manifest
from aegis.runs.publish import discard_leftovers, publishing
from aegis.runs.run import Run
from aegis.verification import divergence, run_checks, texts
from aegis.verification.comparison import Comparison
from aegis.verification.heldout_text import MIN_TOKENS, Sample, sequence_limit
from aegis.verification.logits import llama_logits, repeats_one_token, torch_logits
from aegis.verification.other_merge import choices, merge_the_other_way
from aegis.verification.retention import Witnesses, kept_windows, sentence
from aegis.verification.run_checks import Checks
from aegis.verification.structure import Structure
from aegis.verification.trained_model import trained_model
from aegis.verification.verdict import REPORT, BaseComparison, Verdict

_PROMPT_TOKENS, _SPOKEN_TOKENS = 8, 32
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
    with noted.trusting(paranoid=config.paranoid):
        return _verified(run, config, converted)


def _verified(run: Run, config: VerifyConfig, converted: Path | None) -> Verdict:
    checks = Checks()
    run_checks.check_published(checks, run)
    manifests: dict[str, Manifest] = {}
    verdict = Verdict(0, tuple(checks.done), (), {})
    if checks.ok:  # otherwise a failed part is named already, and may not even load
        manifests = {
            stage: read_manifest(directory)
            for stage, directory in (("train", run.adapter), ("merge", run.merged), ("convert", run.gguf))
        }
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
            draw_divergence(verdict.steps, staging.path / "divergence.png")
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
    """The NF4 round trip, the difference between the two choices of base weights; None if they are not compared."""
    comparison: Comparison
    begun: int = 0

    @property
    def finished_as(self) -> str | None:
        """The type of the file whose weights the training ended with; None without a finish."""
        finish = AdapterFacts.of(self.manifests["train"]).finish
        return None if finish is None else finish.quant

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
        limit = sequence_limit(int(read_config(run.merged)["vocab_size"]), exported.context_tokens)
        if config.text is not None:
            paragraphs = texts.read_text(config.text, tokenizer, MIN_TOKENS)
            sample = Sample.of_text(paragraphs, tokenizer, config.tokens, limit)
        else:
            data = load_training_set(TrainConfig.model_validate(manifests["train"].config), tokenizer)
            # without held-out rows, trained rows are used: for rounding this makes no difference
            rows = texts.first_pieces(data.heldout or data.train, 2 * config.tokens)
            sample = Sample.of_chats(rows, tokenizer, config.tokens, limit, trained=not data.heldout)
        witnesses = Witnesses.of(work, sample, kept_windows(run, config.max_kept_kl, checks), config.tokens, limit)
        round_trip = RoundTrip.of(base, run.adapter) if config.compare_bases else None
        quantized = {quant: run.gguf / name for quant, name in exported.quantized.items()}
        scratch = work / "reference-F16.gguf"
        structure = Structure(run, base, manifests, checks, tokenizer, converted, scratch, config.llama_cpp_dir)
        return cls(
            run, config, base, tokenizer, manifests, checks, work, sample, witnesses, structure, quantized,
            round_trip, Comparison(work, sample, int(read_config(run.merged)["num_hidden_layers"])),
        )  # fmt: skip

    def examine(self) -> Verdict:
        """Check the structure, and compare the models only if it is right."""
        if self.checks.ok:
            self.structure.examine(self.sample.own_texts)
        if self.checks.ok:
            try:
                return self.compare_models()
            except IntegrityError as error:
                maker = _MAKERS[min(len(self.comparison.models), len(_MAKERS) - 1)]
                with self.checks.check(bilingual("verify.every_model"), maker):
                    raise error
        return Verdict(0, tuple(self.checks.done), tuple(self.comparison.steps), {})

    def compare_models(self) -> Verdict:
        """Run the models one after the other and compare their logits, which are on the disk."""
        config, device = self.config, require_device(self.config.device)
        # float16 has eight times the resolution of bfloat16, and the merged weights are float16
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        compared, models = self.sample.compared, self.comparison.models
        merged_as, finished_as = str(self.manifests["merge"].config["dtype"]), self.finished_as
        with trained_model(self.base, self.run.adapter, self.manifests["train"], merged_as, device) as model:
            self.comparison.record("trained", torch_logits(model, compared, self._title(phrase("verify.as_trained"))))
            if finished_as is not None:  # it has the file's weights, which the merged model has not
                self.witnesses.record("result", model)
        del model  # only one model in memory at a time
        wide: Precision = "dequantized" if self.structure.base_weights == "dequantized" else "16bit"
        with live_model(self.base, self.run.adapter, wide, device, dtype) as model:
            self.comparison.record("wide", torch_logits(model, compared, self._title(phrase("verify.wide"))))
        del model
        self.comparison.step("trained", "wide", "train", config.max_kl_nf4)
        plain = load_base(self.base.folder, "16bit", device, dtype)
        self.witnesses.record("base", plain)
        self.comparison.record("base", torch_logits(plain, compared, self._title(phrase("verify.plain_base"))))
        recorded = models.pop("base")
        of_base = divergence.compare(models["trained"], recorded).mean_kl
        perplexity = {"base": divergence.perplexity(recorded)}
        del plain
        merged = load_base(self.run.merged, "16bit", device, dtype)
        self.comparison.record("merged", torch_logits(merged, compared, self._title(phrase("verify.merged"))))
        if finished_as is None:
            self.witnesses.record("result", merged)
        bases: tuple[BaseComparison, ...] = ()
        if self.round_trip is not None:
            merge_the_other_way(merged, self.round_trip, self.structure)
            outputs = torch_logits(merged, compared, self._title(phrase("verify.other_way")))
            other_way = divergence.record(self.work / "other-way.npy", outputs, compared)
            bases = choices(self.structure.base_weights, models["trained"], models["merged"], other_way)
        del merged
        # on a GPU the computation itself is in float16
        rounded = max(DTYPES[merged_as], torch.float16, key=lambda kind: torch.finfo(kind).eps)
        self.comparison.rounding("wide", "merged", "merge", rounded)
        self._run_in_llama()
        perplexity |= {name: divergence.perplexity(recording) for name, recording in models.items()}
        retained, vocab_size = self.witnesses.measured(config.max_kept_kl), models["trained"].logits.shape[1]
        return Verdict(
            tokens=sum(map(len, compared)),
            checks=tuple(self.checks.done),
            steps=tuple(self.comparison.steps),
            perplexity=perplexity,
            retained=retained,
            bases=bases,
            nearness=tuple(self.comparison.nearness(name, of_base) for name in self.quantized),
            vocab_size=vocab_size,
            summary=sentence(retained, perplexity, self.sample.origin, vocab_size),
        )

    def _run_in_llama(self) -> None:
        """Run the f16 GGUF and each quantized one.

        Raises:
            IntegrityError: a quantized file repeats one token for ever, and the f16 file does not.
        """
        compared, threads = self.sample.compared, self.config.threads
        prompt = compared[0][:_PROMPT_TOKENS]
        room = max(*map(len, compared), len(prompt) + _SPOKEN_TOKENS)
        repeating: list[str] = []
        exported = ExportFacts.of(self.manifests["convert"])
        f16 = self.run.gguf / exported.f16 if exported.f16 else self.structure.reference
        for name, path in {"f16": f16, **self.quantized}.items():
            with Runtime(path, n_ctx=room, threads=threads, logits=True) as runtime:
                self.comparison.record(
                    name, llama_logits(runtime, compared, self._title(phrase("verify.in_llama", name=name)))
                )
                if repeats_one_token(runtime, prompt, self.tokenizer.eos_token_id, _SPOKEN_TOKENS):
                    repeating.append(name)
            if name in repeating and "f16" not in repeating:
                raise IntegrityError("verify.repeats", path_name=path.name, spoken_tokens=_SPOKEN_TOKENS)
            if name == "f16":
                self.comparison.rounding("merged", "f16", "convert", torch.float16)
            else:
                self.comparison.step("f16", name, "quantize", self.config.max_kl_quantized)
            if name == self.finished_as:
                self.comparison.finish(name)

    def _title(self, name: str) -> str:
        self.begun += 1
        count = 5 + (self.round_trip is not None) + len(self.quantized)
        return phrase("verify.numbered", number=self.begun, count=count, name=name)
