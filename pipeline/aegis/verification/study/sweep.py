"""Makes the files of a quantization study one after the other, compares each with f16, and removes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from aegis import progress
from aegis.config.study_settings import StudyConfig
from aegis.llama_cpp import MIN_CHUNK_TOKENS, Runtime, measure_importance, quantize
from aegis.messages import phrase
from aegis.runs.manifest import file_sha256
from aegis.runs.run import IMATRIX
from aegis.verification import divergence
from aegis.verification.divergence import Recording
from aegis.verification.gguf_checks import check_quantized
from aegis.verification.logits import llama_logits
from aegis.verification.study.result import Importance, Measured, NotBuilt, Reference, Speed, Study
from aegis.verification.study.text_split import StudyText

CALIBRATION = "calibration.txt"
_CHUNK_TOKENS = 512
_WRITTEN_TOKENS = 32


@dataclass
class Sweep:
    """One study: it makes files in `out` and temporary files in `work`."""

    config: StudyConfig
    material: StudyText
    f16: Path
    out: Path
    work: Path
    measured: list[Measured] = field(default_factory=list)

    def run(self, made: list[tuple[str, str]], left: list[NotBuilt]) -> Study:
        """Measure f16, then every file of `made`."""
        importance = self._importance() if any("imatrix" in variant for _, variant in made) else None
        reference, speed = self._run(self.f16, "f16")
        for number, (quant, variant) in enumerate(made, 1):
            progress.say(
                phrase("quantize_study.file", number=number, made_count=len(made), quant=quant, variant=variant)
            )
            self.measured.append(self._measure(quant, variant, reference))
        return Study(
            tokens=sum(map(len, self.material.measured)),
            tolerance=self.config.tolerance,
            reference=Reference(
                self.f16.stat().st_size, file_sha256(self.f16), divergence.perplexity(reference), speed
            ),
            measured=tuple(self.measured),
            left=tuple(left),
            importance=importance,
        )

    def _importance(self) -> Importance:
        text, tokens = self.out / CALIBRATION, self.material.calibration_tokens
        text.write_text(self.material.calibration, encoding="utf-8", newline="\n")
        # llama.cpp needs two chunks, and may count a few tokens less than the tokenizer did
        chunk_tokens = max(MIN_CHUNK_TOKENS, min(_CHUNK_TOKENS, tokens // 3))
        measure_importance(self.f16, text, self.out / IMATRIX, chunk_tokens=chunk_tokens, threads=self.config.threads)
        return Importance(file_sha256(self.f16), file_sha256(text), tokens, chunk_tokens)

    def _measure(self, quant: str, variant: str, reference: Recording) -> Measured:
        head = "q8_0" if "head-q8_0" in variant else None
        file = self.out / f"{quant}-{variant}.gguf"
        quantize(
            self.f16,
            file,
            quant,
            threads=self.config.threads,
            output_tensor_type=head,
            imatrix=self.out / IMATRIX if "imatrix" in variant else None,
        )
        check_quantized(file, quant, head)
        size, sha256 = file.stat().st_size, file_sha256(file)
        twin = next((row for row in self.measured if row.sha256 == sha256), None)
        if twin is not None:
            found, perplexity, speed = twin.found, twin.perplexity, twin.speed
        else:
            recording, speed = self._run(file, f"{quant}, {variant}")
            found, perplexity = divergence.compare(reference, recording), divergence.perplexity(recording)
        if not self.config.keep:
            file.unlink()
        same_as = f"{twin.quant}, {twin.variant}" if twin else None
        return Measured(quant, variant, size, sha256, found, perplexity, speed, same_as)

    def _run(self, file: Path, title: str) -> tuple[Recording, Speed]:
        """Record a file's logits and measure its speed; its logits replace the previous file's, but not f16's."""
        sequences = self.material.measured
        longest = max(sequences, key=len)
        with Runtime(file, n_ctx=max(2, len(longest)), threads=self.config.threads, logits=True) as runtime:
            # the first pass reads the weights from the disk and must not be timed
            runtime.logits(longest[:_WRITTEN_TOKENS])
            path = self.work / ("f16.npy" if file == self.f16 else "quantized.npy")
            path.unlink(missing_ok=True)  # it may still be mapped: writing into it would change the reader's data
            rates: list[float] = []
            recording = divergence.record(path, llama_logits(runtime, sequences, title, rates), sequences)
            writing = 1 / runtime.seconds_a_token(longest[: _WRITTEN_TOKENS + 1])
        # short sequences are slower per token
        long = [rate for rate, sequence in zip(rates, sequences, strict=True) if 2 * len(sequence) >= len(longest)]
        return recording, Speed(median(long), writing)
