"""verify: proof that what was trained is what runs, model by model, and the name of the stage where it is not.

The same token ids go through five models, and neighbours are compared:

    trained     the base as it was trained on (NF4), adapter, live soul
    wide        the base in 16 bit, adapter, live soul
    merged      the merged folder in stock transformers; no code of ours in its forward pass
    f16         its f16 GGUF in llama.cpp
    quantized   each quantized GGUF in llama.cpp

wide → merged → f16 is rounding and has bounds; trained → wide and f16 → quantized are changes of precision, and are
reported, with a bound if the user sets one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis.config import TrainConfig, VerifyConfig
from aegis.demo.corpus import documents
from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime, convert
from aegis.manifest import Manifest, read_manifest
from aegis.model.adapter import load_adapter
from aegis.model.base import Base, find_base, load_tokenizer, read_config
from aegis.model.live import live_model
from aegis.model.load import choose_device, load_base
from aegis.model.merging import DTYPES, MergePlan
from aegis.proof import divergence, structure, text, tokens
from aegis.proof.divergence import Logits, Recording
from aegis.proof.models import llama_logits, torch_logits
from aegis.proof.structure import Checks
from aegis.proof.verdict import Kept, Step, Verdict
from aegis.publish import publishing
from aegis.report.pictures import draw_divergence
from aegis.runs import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul
from aegis.training.material import training_data

REPORT = "report.json"
ROUNDING_KL = 1e-4
"""Mean KL in nats that 16-bit rounding stays under on real text."""
ROUNDING_TOP1 = 0.995
"""Share of positions whose likeliest token rounding leaves alone: only near-ties flip."""
_SEQUENCE_TOKENS = 512
_LEAST_TOKENS = 64


def verify(run: Run, config: VerifyConfig) -> Verdict:
    """Check a finished run, and write verify/report.json and verify/divergence.png into it.

    Raises:
        IntegrityError: the run is not finished, so that there is nothing to compare.
        DataError: the text is too short.
    """
    for directory, stage in ((run.adapter, "train"), (run.merged, "merge"), (run.gguf, "export-gguf")):
        if not directory.is_dir():
            raise IntegrityError(
                f"{run.root} is not finished: there is no {directory.name}/", fix=f"run: aegis {stage} --run {run.root}"
            )
    with divergence.scratch(run.verify) as work:
        examiner = _Examiner.begin(run, config, work)
        examiner.look_at_structure()
        # a part that is not what it should be has been named already, and may not even load
        sound = all(check.ok for check in examiner.checks.done)
        verdict = examiner.compare_models() if sound else Verdict(0, tuple(examiner.checks.done), (), {}, None)
    manifest = Manifest(
        stage="verify",
        config=config.model_dump(mode="json", exclude={"llama_cpp_dir"}),
        inputs={stage: found.identity for stage, found in examiner.manifests.items()},
        facts={"ok": verdict.guilty is None},
    )
    with publishing(run.verify, manifest, overwrite=True) as staging:
        report = json.dumps(verdict.as_json(), indent=2, ensure_ascii=False) + "\n"
        (staging.path / REPORT).write_text(report, encoding="utf-8")
        if verdict.steps:
            draw_divergence(verdict.steps, staging.path / "divergence.png")
    return verdict


@dataclass
class _Examiner:
    """One verification under way."""

    run: Run
    config: VerifyConfig
    base: Base
    tokenizer: Any
    manifests: dict[str, Manifest]
    checks: Checks
    work: Path
    f16: Path
    quantized: list[Path]

    @classmethod
    def begin(cls, run: Run, config: VerifyConfig, work: Path) -> _Examiner:
        checks = Checks()
        structure.check_published(checks, run)
        manifests = {
            stage: read_manifest(directory)
            for stage, directory in (("train", run.adapter), ("merge", run.merged), ("convert", run.gguf))
        }
        facts = manifests["train"].facts
        base = find_base(str(facts["base_model"]), facts["revision"])
        files = [run.gguf / str(name) for name in manifests["convert"].facts["files"]]
        f16 = next((path for path in files if path.name.endswith("-F16.gguf")), None)
        if f16 is None:
            f16 = work / "rebuilt-F16.gguf"
            name = str(manifests["convert"].facts["name"])
            convert(run.merged, f16, model_name=name, tree=config.llama_cpp_dir)
        quantized = [path for path in files if path != f16]
        return cls(run, config, base, load_tokenizer(base.folder), manifests, checks, work, f16, quantized)

    def look_at_structure(self) -> None:
        """Everything that needs no forward pass."""
        run, checks = self.run, self.checks
        with checks.check("R orthogonal, det +1", "train"):
            load_soul(run.adapter / SOUL_FILE)
        with checks.check("adapter and soul fit the base", "merge"):
            dtype = DTYPES[str(self.manifests["merge"].config["dtype"])]
            plan = MergePlan.make(self.base, load_adapter(run.adapter), load_soul(run.adapter / SOUL_FILE), dtype)
            structure.check_head(checks, plan, run.merged)
        structure.check_finite(checks, run.merged)
        # the base's own tokenizer: one that lost tokens on the way must not be measured against itself
        structure.check_converted(checks, self.f16, run.merged, read_config(run.merged), self.tokenizer)
        head_quant = self.manifests["convert"].config.get("head_quant")
        for path in self.quantized:
            structure.check_types(checks, path, _quant_of(path), head_quant)
        for path in [self.f16, *self.quantized]:
            with checks.check(f"token ids of {path.name}", "convert") as tell:
                with Runtime(path, vocab_only=True) as runtime:
                    compared, wrong = tokens.disagreements(self.tokenizer, runtime)
                    same_start = tokens.strips_full_width_space(self.tokenizer, runtime)
                if wrong:
                    raise IntegrityError(f"{len(wrong)} of {compared} texts get other ids", why="\n".join(wrong[:5]))
                tell(f"{compared} texts, the same ids as in transformers")
                if not same_start:
                    tell("but not for a message that begins with a full-width space, which llama.cpp keeps")

    def compare_models(self) -> Verdict:
        """Run the models one after the other; only their logits, on disk, outlive them."""
        config, device = self.config, choose_device(self.config.device)
        # float16 has eight times bfloat16's resolution, and the merged weights are in it
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        compared, other = self._sequences()
        models: dict[str, Recording] = {}
        steps: list[Step] = []

        def recorded(name: str, outputs: Iterable[Logits]) -> None:
            models[name] = divergence.record(self.work / f"{name}.npy", outputs, compared)

        def step(before: str, after: str, stage: str, most_kl: float | None, least_top1: float | None = None) -> None:
            found = divergence.compare(models[before], models[after])
            steps.append(Step(f"{before} → {after}", stage, found, most_kl, least_top1))

        def on_other_text(name: str, model: Any) -> Recording:
            outputs = torch_logits(model, other, f"{name}, other text")
            return divergence.record(self.work / f"{name}-other.npy", outputs, other)

        with live_model(self.base, self.run.adapter, self.manifests["train"].config["load_in"], device) as model:
            recorded("trained", torch_logits(model, compared, "as trained"))
        with live_model(self.base, self.run.adapter, "16bit", device, dtype) as model:
            recorded("wide", torch_logits(model, compared, "16-bit base"))
        del model
        step("trained", "wide", "train", config.most_kl_precision)
        base_kept = on_other_text("base", load_base(self.base.folder, "16bit", device, dtype))
        merged = load_base(self.run.merged, "16bit", device, dtype)
        recorded("merged", torch_logits(merged, compared, "merged"))
        result_kept = on_other_text("merged", merged)
        del merged
        step("wide", "merged", "merge", ROUNDING_KL, ROUNDING_TOP1)
        for path in [self.f16, *self.quantized]:
            name = "f16" if path == self.f16 else _quant_of(path)
            with Runtime(path, n_ctx=_SEQUENCE_TOKENS, threads=config.threads, logits=True) as runtime:
                recorded(name, llama_logits(runtime, compared, f"{name} in llama.cpp"))
            if name == "f16":
                step("merged", "f16", "convert", ROUNDING_KL, ROUNDING_TOP1)
            else:
                step("f16", name, "quantize", config.most_kl_quantized)
        return Verdict(
            tokens=sum(map(len, compared)),
            checks=tuple(self.checks.done),
            steps=tuple(steps),
            perplexity={name: divergence.perplexity(recording) for name, recording in models.items()},
            kept=Kept.measure(base_kept, result_kept),
        )

    def _sequences(self) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids to compare the models on, half of them chats, and other text for what was kept of the base."""
        limit = min(_SEQUENCE_TOKENS, int(self.manifests["convert"].facts["context_tokens"]))
        embedded = documents(0, 60, "held_out")
        if self.config.text is not None:
            given = text.read_text(self.config.text, self.tokenizer, _LEAST_TOKENS)
            plain = text.plain_sequences(given, self.tokenizer, limit)
            compared = text.take(plain, self.config.tokens)
            other = given
        else:
            data = training_data(TrainConfig.model_validate(self.manifests["train"].config), self.tokenizer)
            # without rows held out, the chats are the training's own: rounding does not care
            chats = [piece[:limit] for piece in text.pieces(data.heldout or data.train)]
            contents = [self.tokenizer.decode(chat, skip_special_tokens=True) for chat in chats]
            half = text.take(chats, self.config.tokens // 2)
            rest = self.config.tokens - sum(map(len, half))
            compared = half + text.take(text.plain_sequences(contents, self.tokenizer, limit), rest)
            other = embedded
        return compared, text.take(text.plain_sequences(other, self.tokenizer, limit), self.config.tokens)


def _quant_of(path: Path) -> str:
    return path.stem.rpartition("-")[2]
