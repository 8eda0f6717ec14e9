"""The same job by Unsloth and llama.cpp's own tools by hand, for `bench_run.py`: load, train, merge, convert, quantize.

    python tools/peer_job.py job TEMPLATE WORK STEPS     times each stage, and prints one JSON row per stage

Random weights of the Phi-3.5-mini shape in the Llama layout, in which Unsloth runs Phi, with the template's tokenizer.
Every difference is in the peer's favour: random tokens in full windows, so no data is read or checked; nothing is
logged, evaluated, saved on the way or proved. It trains twice: with Unsloth's default for activations, which are
recomputed and offloaded, and with all of them kept, which is faster; the second finds what the first has compiled. The
peer is measured, not used: nothing of AEGIS imports it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOKENS = 512
"""Per window, and one window per step: the defaults of `aegis train`."""
_QUANTIZE = """
import ctypes, sys, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""


def write_peer_base(template: Path, folder: Path) -> None:
    """Write the random base in the Llama layout, in bfloat16."""
    import torch
    from full_size import copy_template, write_base
    from peers_train import SHAPE
    from transformers import AutoModelForCausalLM, LlamaConfig

    copy_template(template, folder, None)
    config = LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    write_base(model, folder, "cuda")


def train(base: Path, merged: Path, steps: int, keeps_activations: bool) -> None:
    """Load in 4 bits, train a LoRA, save the merged model in 16 bits; print each stage's seconds."""
    began = time.perf_counter()

    def ends(stage: str) -> None:
        nonlocal began
        torch.cuda.synchronize()
        _print(stage, time.perf_counter() - began)
        began = time.perf_counter()

    import unsloth  # noqa: F401, I001 (it wants to be first)
    import torch

    ends("imports")
    from peers_train import unsloth_lora

    model, tokenizer, loss_of = unsloth_lora(base, not keeps_activations, TOKENS)
    ends("load")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    for _ in range(steps):
        loss_of(torch.randint(5, 32000, (1, TOKENS), device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ends(f"{steps} steps")
    model.save_pretrained_merged(str(merged), tokenizer, save_method="merged_16bit")
    ends("merged save")


def job(template: Path, work: Path, steps: int) -> int:
    """Make the base, then time the job's processes, one after another, as a user starts them."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    base, merged, f16, quantized = work / "peer-base", work / "peer-merged", work / "f16.gguf", work / "q4_k_m.gguf"
    write_peer_base(template, base)
    converter = Path(os.environ["LLAMA_CPP_DIR"]) / "convert_hf_to_gguf.py"
    commands = {
        "train": [__file__, "train", str(base), str(merged), str(steps), ""],
        "convert": [str(converter), str(merged), "--outfile", str(f16), "--outtype", "f16"],
        "quantize": ["-c", _QUANTIZE, str(f16), str(quantized)],
        "train, activations kept": [__file__, "train", str(base), str(merged), str(steps), "kept"],
    }
    took = {}
    for stage, command in commands.items():
        if stage.startswith("train"):
            shutil.rmtree(merged, ignore_errors=True)
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        took[stage] = time.perf_counter() - began
        for line in done.stdout.splitlines():
            if line.startswith('{"stage"'):
                print(line, flush=True)
        _print(stage, took[stage])
        if done.returncode:
            print(done.stdout[-3000:], file=sys.stderr)
            return done.returncode
    _print("whole", took["train"] + took["convert"] + took["quantize"])
    _print("whole, activations kept", took["train, activations kept"] + took["convert"] + took["quantize"])
    return 0


def _print(stage: str, seconds: float) -> None:
    print(json.dumps({"stage": stage, "seconds": round(seconds, 1)}), flush=True)


def main() -> int:
    """Run the job, or its training alone."""
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), bool(sys.argv[5]))
        return 0
    return job(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))


if __name__ == "__main__":
    sys.exit(main())
