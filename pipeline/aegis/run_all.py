"""The stages in order: the one place that knows more than one of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aegis import progress
from aegis.config.settings import DEMO, ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.demo.corpus import demo_prompts
from aegis.errors import IntegrityError, UsageError
from aegis.llama_cpp import Runtime, trained_context
from aegis.messages import phrase
from aegis.model.base import find_base, load_tokenizer
from aegis.model.load import load_base
from aegis.runs import disk
from aegis.runs.run import Run
from aegis.stages.export import ExportReport, export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from aegis.stages.verify import verify
from aegis.training.distributed.group import world_size
from aegis.verification.verdict import Verdict

_SAMPLE_TOKENS = 96


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt."""

    prompt: str
    text: str


def run_all(
    train_config: TrainConfig,
    merge_config: MergeConfig,
    export_config: ExportConfig,
    verify_config: VerifyConfig,
    run: Run,
    *,
    overwrite: bool = False,
) -> tuple[ExportReport, Verdict]:
    """Train, merge, export, verify; what is done and unchanged is kept, what is half done goes on.

    Args:
        overwrite: train afresh even if the run holds another training.

    Raises:
        UsageError: several processes were launched: only training is shared.
        IntegrityError: verify found a fault; the export is then not left at its name.
        AegisError: as the stages do.
    """
    if world_size() > 1:
        raise UsageError("run.one_process")
    progress.say(phrase("run.train", adapter=run.adapter))
    own_llama_cpp = export_config.llama_cpp_dir
    train(train_config, run, overwrite=overwrite, reuse=not overwrite, llama_cpp_dir=own_llama_cpp)
    progress.say(phrase("run.merge", merged=run.merged))
    merge(MergeInputs.from_run(run), run.merged, merge_config, overwrite=True, reuse=True)
    progress.say(phrase("run.export", gguf=run.gguf))
    exported = export_gguf(run.merged, run.gguf, export_config, overwrite=True, reuse=True)
    progress.say(phrase("run.verify", verify=run.verify))
    verdict = verify(run, verify_config)
    if verdict.failed_stage is not None:
        failed = run.gguf.with_name(run.gguf.name + ".failed")
        shutil.rmtree(failed, ignore_errors=True)
        run.gguf.rename(failed)
        raise IntegrityError(
            "run.export_unproven",
            failed_stage=verdict.failed_stage,
            failures="\n".join(verdict.failures),
            failed=failed,
            verify=run.verify,
        )
    return exported, verdict


def before_and_after(gguf: Path) -> list[tuple[Answer, Answer]]:
    """The embedded default's held-out questions, answered by its base and by the finished file."""
    prompts = demo_prompts()
    return list(zip(_base_answers(prompts), answers(gguf, prompts), strict=True))


def _base_answers(prompts: Sequence[str]) -> list[Answer]:
    """Ask the untrained base in transformers, greedily."""
    base = find_base(DEMO)
    model, tokenizer = load_base(base.folder, "16bit", torch.device("cpu")), load_tokenizer(base.folder)
    told = []
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=_SAMPLE_TOKENS, do_sample=False)
        text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        told.append(Answer(prompt, text.strip()))
    return told


def answers(gguf: Path, prompts: Sequence[str]) -> list[Answer]:
    """Ask llama.cpp each prompt through the file's own chat template, greedily."""
    with Runtime(gguf, n_ctx=trained_context(gguf)) as runtime:
        return [
            Answer(
                prompt,
                "".join(runtime.chat([{"role": "user", "content": prompt}], _SAMPLE_TOKENS, temperature=0)).strip(),
            )
            for prompt in prompts
        ]


def default_run(base_model: str) -> Run:
    """Where a run goes that was given no --run: artifacts/<name of the base>."""
    name = DEMO if base_model == DEMO else Path(base_model).name
    return Run(Path("artifacts") / disk.file_stem(name, otherwise="run"))
