"""Computes logits with transformers or llama.cpp, one sequence at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from aegis import progress
from aegis.errors import IntegrityError
from aegis.llama_cpp import Runtime
from aegis.verification.divergence import Logits


def torch_logits(model: Any, sequences: Sequence[Sequence[int]], title: str) -> Iterator[Logits]:
    """Run each sequence by itself through a transformers model; yield (tokens, vocab_size) float32."""
    device = next(model.parameters()).device
    with progress.task(title, len(sequences), "sequence") as bar:
        for sequence in sequences:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([list(sequence)], device=device), use_cache=False).logits
            yield logits[0].float().cpu().numpy()
            bar.advance()


def llama_logits(
    runtime: Runtime, sequences: Sequence[Sequence[int]], title: str, rates: list[float] | None = None
) -> Iterator[Logits]:
    """Run each sequence by itself through llama.cpp; yield (tokens, vocab_size) float32.

    Args:
        rates: gets each sequence's tokens per second, with the logits of every token.
    """
    with progress.task(title, len(sequences), "sequence") as bar:
        for sequence in sequences:
            began = perf_counter()
            logits = np.ascontiguousarray(runtime.logits(list(sequence)))
            if rates is not None:
                rates.append(len(sequence) / (perf_counter() - began))
            yield logits
            bar.advance()


def repeats_one_token(runtime: Runtime, prompt: Sequence[int], end_token: int | None, tokens: int = 32) -> bool:
    """Whether a GGUF repeats one token `tokens` times when it takes the most likely token after `prompt`.

    Args:
        runtime: opened with a context for prompt and answer.
        end_token: the token that ends an answer.
    """
    first = None
    for token in itertools.islice(runtime.likely_tokens(prompt), tokens):
        if token == end_token or first not in (None, token):
            return False
        first = token
    return True


def check_answers(gguf: Path) -> None:
    """Load a GGUF in llama.cpp and evaluate one token; a file that fails here is not published.

    Raises:
        IntegrityError: llama.cpp cannot load the file, or its logits are not finite.
    """
    with Runtime(gguf, n_ctx=8, logits=True) as runtime:
        if not np.isfinite(runtime.logits([0])).all():
            raise IntegrityError("export.no_answer", path=gguf)
