"""The same QLoRA step by peers, for `bench_train.py`: transformers + peft as their users call it, and Unsloth.

    python tools/peers_train.py hf|unsloth LENGTHS STEPS     prints one JSON row a length and mode

Random weights of the Phi-3.5-mini shape (Unsloth runs Phi in the Llama layout), NF4, LoRA r 16 on attention, batch 1,
bfloat16, AdamW, full windows. The peers are measured, not used: nothing of AEGIS imports them.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}

SHAPE: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def measure(peer: str, recomputes: bool, length: int, steps: int, step: Callable[[Any], Any]) -> dict[str, Any]:
    """Median milliseconds and peak GiB of a step on `length` tokens."""
    import torch

    ids = torch.randint(5, 32000, (1, length), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        loss = step(ids)
    torch.cuda.synchronize()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = step(ids)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return {
        "peer": peer,
        "recomputes": recomputes,
        "length": length,
        "ms": round(statistics.median(times), 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "loss": round(float(loss), 3),
    }


def save_base(folder: Path) -> None:
    """Write the random model, and a tokenizer that Unsloth insists on."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{number}": number for number in range(3, SHAPE["vocab_size"])}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106 (a token of text)
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    ).save_pretrained(folder)


def hf_model(folder: Path, recomputes: bool) -> tuple[Any, Callable[[Any], Any]]:
    """transformers + peft with its prepare_model_for_kbit_training, as their documentation shows it."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": 0}
    )
    model = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=recomputes, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    return model, lambda ids: model(input_ids=ids, labels=ids).loss


def unsloth_lora(folder: Path, recomputes: bool, length: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Unsloth's model, its tokenizer, and the loss of a step; with its own checkpointing where it recomputes."""
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=length, load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth" if recomputes else False,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    ).train()

    def loss(ids: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return model(input_ids=ids, labels=ids).loss

    return model, tokenizer, loss


def unsloth_model(folder: Path, recomputes: bool) -> tuple[Any, Callable[[Any], Any]]:
    """Unsloth, for windows up to 8,192 tokens."""
    model, _, loss = unsloth_lora(folder, recomputes, 8192)
    return model, loss


def main() -> int:
    """Measure one peer."""
    peer, lengths, steps = sys.argv[1], [int(text) for text in sys.argv[2].split(",")], int(sys.argv[3])
    if peer == "unsloth":
        import unsloth  # noqa: F401 (it wants to be first)
    import torch

    make = {"hf": hf_model, "unsloth": unsloth_model}[peer]
    with tempfile.TemporaryDirectory(prefix="peer-") as directory:
        folder = Path(directory)
        save_base(folder)
        gc.collect()
        torch.cuda.empty_cache()
        for recomputes in (True, False):
            model, loss = make(folder, recomputes)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)

            def step(ids: Any, loss: Any = loss, optimizer: Any = optimizer) -> Any:
                value = loss(ids)
                value.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                return value.detach()

            for length in lengths:
                try:
                    print(json.dumps(measure(peer, recomputes, length, steps, step)), flush=True)
                except Exception as error:  # a peer's failure is a row, not an end
                    print(json.dumps({"peer": peer, "length": length, "error": str(error)[:200]}), flush=True)
            del model, loss, optimizer, step
            gc.collect()
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
