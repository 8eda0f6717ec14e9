"""One verification of a run: the checks of its files, the models, and their comparison.

Its first half needs no GGUF (`verification.early_half`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from aegis import progress
from aegis.background import Background
from aegis.config.recorded import recorded_config
from aegis.config.settings import VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_training_set
from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile, spared_threads
from aegis.merging.base_weights import RoundTrip
from aegis.messages import bilingual, phrase
from aegis.model.base import read_config
from aegis.model.context import context_tokens
from aegis.model.device import require_device
from aegis.model.empty_model import load_config
from aegis.model.shards import HEAD, ShardSet
from aegis.model.trained_base import trained_base
from aegis.runs.facts import AdapterFacts
from aegis.runs.manifest import Manifest
from aegis.runs.run import Run
from aegis.verification import divergence, token_sequences
from aegis.verification.comparison import Comparison
from aegis.verification.heldout_text import MIN_TOKENS, Sample, sequence_limit
from aegis.verification.llama_passes import LlamaPasses
from aegis.verification.retention import Witnesses, kept_windows, sentence
from aegis.verification.run_checks import Checks
from aegis.verification.structure import Structure
from aegis.verification.transformers_passes import TransformersPasses
from aegis.verification.verdict import Verdict


@dataclass
class Examination:
    """The state of a verification.

    Attributes:
        checks: the checks so far, in their order.
        has_half: whether its first half is done.
    """

    config: VerifyConfig
    checks: Checks
    sample: Sample
    witnesses: Witnesses
    structure: Structure
    comparison: Comparison
    passes: TransformersPasses
    in_llama: LlamaPasses
    has_half: bool = False

    @classmethod
    def begin(cls, run: Run, config: VerifyConfig, manifests: Mapping[str, Manifest], work: Path) -> Examination:
        """Choose the text and prepare the checks.

        Args:
            manifests: those of "train" and "merge", perhaps of "convert" too.
            work: a folder for the models' logits.

        Raises:
            DataError: the text is too short.
            UsageError: there is a bound on kept text, but no kept text.
        """
        base, checks = trained_base(run.adapter), Checks()
        tokenizer, device = base.tokenizer(), require_device(config.device)
        limit = sequence_limit(
            ShardSet.open(run.merged).entries[HEAD].shape[0], context_tokens(read_config(run.merged))
        )
        if config.text is not None:
            paragraphs = token_sequences.read_text(config.text, tokenizer, MIN_TOKENS)
            sample = Sample.of_text(paragraphs, tokenizer, config.tokens, limit)
        else:
            data = load_training_set(recorded_config(manifests["train"], TrainConfig), tokenizer)
            # without held-out rows, trained rows are used: for rounding this makes no difference
            rows = token_sequences.first_pieces(data.heldout or data.train, 2 * config.tokens)
            sample = Sample.of_chats(rows, tokenizer, config.tokens, limit, trained=not data.heldout)
        witnesses = Witnesses.of(work, sample, kept_windows(run, config.max_kept_kl, checks), config.tokens, limit)
        round_trip = RoundTrip.of(base, run.adapter) if config.compare_bases else None
        scratch = work / "reference-F16.gguf"
        structure = Structure(run, base, manifests, checks, tokenizer, None, scratch, config.llama_cpp_dir)
        comparison = Comparison(work, sample, load_config(run.merged).num_hidden_layers, device)
        passes = TransformersPasses(structure, comparison, witnesses, device, round_trip)
        in_llama = LlamaPasses(
            sample.compared,
            work,
            device,
            threads=config.threads or (spared_threads() if device.type == "cuda" else None),
            end_token=tokenizer.eos_token_id,
            advance=comparison.advance,
        )
        return cls(config, checks, sample, witnesses, structure, comparison, passes, in_llama)

    def take_half(self, stop: threading.Event) -> None:
        """Check what the GGUF was made from, and run the models that need none.

        Args:
            stop: set to end this between two models, or between two tensors of the merged folder.

        Raises:
            InterruptedError: it was set.
            IntegrityError: a model cannot be loaded, or returned NaN or Inf.
        """
        self.checks.stop = stop
        if self.checks.ok:
            self.structure.examine_merged()
        if self.checks.ok:
            self.passes.run(stop)
            self.has_half = True

    def of_export(self, manifests: Mapping[str, Manifest], converted: Path | None) -> None:
        """Take the exported files in.

        Args:
            manifests: those of "train", "merge" and "convert".
            converted: where export left its f16 file, if it ran in this process.
        """
        self.structure = replace(self.structure, manifests=manifests, converted=converted)

    @property
    def quantized(self) -> dict[str, Path]:
        return {quant: self.structure.run.gguf / name for quant, name in self.structure.exported.quantized.items()}

    @property
    def _is_beside(self) -> bool:
        """Whether llama.cpp runs beside everything else; on a CPU, it and torch would wait for each other's threads."""
        return self.comparison.device.type == "cuda"

    @property
    def _f16(self) -> Path:
        kept = self.structure.exported.f16
        return self.structure.run.gguf / kept if kept else self.structure.reference

    def examine(self) -> Verdict:
        """Check the structure, and compare the models if it is right; on a GPU, llama.cpp runs beside both."""
        if not self.checks.ok:
            return self._ended()
        with nullcontext() if self.in_llama.is_running else self.in_llama.running():
            if self._is_beside and self.structure.is_converted:
                self.in_llama.add("f16", self._f16)
            if not self.has_half:
                self.structure.examine_merged()
            self.structure.examine_exported(self.sample.own_texts)
            return self._compared() if self.checks.ok else self._ended()

    def _add_files(self) -> None:
        """Let llama.cpp run all files; unchecked, one that its quantizer did not make might end the process."""
        for name, file in {"f16": self._f16, **self.quantized}.items():
            self.in_llama.add(name, file)

    def _ended(self) -> Verdict:
        """Return what was found before something was at fault."""
        return Verdict(0, tuple(self.checks.done), tuple(self.comparison.steps), {})

    def _compared(self) -> Verdict:
        try:
            return self.compare_models()
        except IntegrityError as error:
            with self.checks.check(bilingual("verify.every_model"), self._maker):
                raise error
        return self._ended()

    @property
    def _maker(self) -> str:
        """The stage that made the model that is at work, or is being compared; a model of base weights is train's."""
        if "wide" not in self.comparison.models:
            return "train"
        compared = {step.stage for step in self.comparison.steps}
        return next((stage for stage in ("merge", "convert") if stage not in compared), "quantize")

    def compare_models(self) -> Verdict:
        """Run the models and compare their logits, which are on the disk; llama.cpp is running."""
        models, passes = self.comparison.models, self.passes
        with self.comparison.shown(5 + (passes.round_trip is not None) + len(self.quantized)):
            if self._is_beside:
                self._add_files()
            if not self.has_half:
                passes.run()
            self._add_files()
            of_base = divergence.compare(models["trained"], models["base"]).mean_kl
            perplexity = {"base": divergence.perplexity(models.pop("base"))}
            bases = passes.compare(self.config.max_kl_nf4)
            retained = self.witnesses.measured(self.config.max_kept_kl)
            perplexity |= {name: divergence.perplexity(recording) for name, recording in models.items()}
            if not self._is_beside:
                self.in_llama.wait()
            for name in ("f16", *self.quantized):
                models[name] = self.in_llama.recording(name)
                self._compare_in_llama(name)
                perplexity[name] = divergence.perplexity(models[name])
            nearness = tuple(self.comparison.nearness(name, of_base) for name in self.quantized)
        vocab_size = models["trained"].logits.shape[1]
        return Verdict(
            tokens=sum(map(len, self.sample.compared)),
            checks=tuple(self.checks.done),
            steps=tuple(self.comparison.steps),
            perplexity=perplexity,
            retained=retained,
            bases=bases,
            nearness=nearness,
            vocab_size=vocab_size,
            summary=sentence(retained, perplexity, self.sample.origin, vocab_size),
        )

    def _compare_in_llama(self, name: str) -> None:
        if name == "f16":
            Background(self.structure.remove_reference)  # freeing so many bytes takes more than a second
            self.comparison.rounding("merged", "f16", "convert", torch.float16)
        else:
            self.comparison.step("f16", name, "quantize", self.config.max_kl_quantized)
            if name == self.passes.finished_as:
                self._compare_with_trained(name)

    def _compare_with_trained(self, name: str) -> None:
        """Hold a file to the trained model, unless export rounded it otherwise than the training's last steps did."""
        finish = AdapterFacts.of(self.structure.manifests["train"]).finish
        with GgufFile(self.quantized[name]) as file:
            is_other_head = finish is not None and file.tensors["output.weight"].type != finish.types[HEAD]
        if is_other_head or "imatrix" in self.structure.manifests["convert"].inputs:
            progress.say(phrase("verify.rounded_otherwise", name=name))
            self.comparison.step("trained", name, "quantize", None)
        else:
            self.comparison.finish(name)
