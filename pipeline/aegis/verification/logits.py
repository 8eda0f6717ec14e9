"""Computes logits with transformers or llama.cpp; no sequence sees another."""

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

_LOGITS_GPU = 1 << 26
"""Logits per pass on a GPU: 134 MB in float16. With a vocabulary of 32,064 a pass has 2,092 tokens."""


def torch_logits(model: Any, sequences: Sequence[Sequence[int]], title: str) -> Iterator[Logits]:
    """Run sequences through a causal transformers model, several at once on a GPU; yield (tokens, vocab_size) float32.

    Shorter sequences are filled up at their end, which no earlier token sees.
    """
    device = next(model.parameters()).device
    with progress.task(title, len(sequences), "sequence") as bar:
        for together in _passes(sequences, _pass_tokens(model, device)):
            longest = max(map(len, together))
            filled = [[*sequence, *[0] * (longest - len(sequence))] for sequence in together]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(filled, device=device), use_cache=False).logits
            for row, sequence in zip(logits, together, strict=True):
                yield row[: len(sequence)].float().cpu().numpy()
                bar.advance()


def _pass_tokens(model: Any, device: torch.device) -> int:
    """Return the maximum tokens of a pass with several sequences; a CPU gains nothing by them."""
    return _LOGITS_GPU // model.get_output_embeddings().weight.shape[0] if device.type == "cuda" else 0


def _passes(sequences: Sequence[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    """Divide the sequences, in their order, so that each pass has one, or several with at most `tokens` tokens."""
    together: list[Sequence[int]] = []
    for sequence in sequences:
        if together and (len(together) + 1) * max(map(len, [*together, sequence])) > tokens:
            yield together
            together = []
        together.append(sequence)
    if together:
        yield together


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
    with Runtime(gguf, n_ctx=8, logits=True, repack=False) as runtime:
        if not np.isfinite(runtime.logits([0])).all():
            raise IntegrityError("export.no_answer", path=gguf)
