"""Pretrain the demo base on the corpus: next-token loss, float32, on the CPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from random import Random

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from aegis import progress
from aegis.demo.muon import Muon
from aegis.demo.settings import DemoSettings
from aegis.errors import DivergedError
from aegis.messages import phrase

IGNORED = -100


def pretrain(model: nn.Module, rows: list[list[int]], pad_id: int, settings: DemoSettings) -> None:
    """Train `model` in place for `settings.steps` steps over `rows` of token ids.

    Raises:
        DivergedError: the loss is not finite.
    """
    optimizers = _optimizers(model, settings)
    schedules = [LambdaLR(optimizer, lambda step: _learning_rate_share(step, settings)) for optimizer in optimizers]
    model.train()
    smoothed = 0.0
    with progress.task(phrase("demo.pretraining"), settings.steps, "step") as bar:
        batches = _endless_batches(rows, pad_id, settings)
        for step in range(settings.steps):
            loss = _loss(model, *next(batches))
            if not math.isfinite(loss.item()):
                raise DivergedError("demo.diverged", loss=loss.item(), step=step)
            model.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            for schedule in schedules:
                schedule.step()
            smoothed = loss.item() if step == 0 else 0.9 * smoothed + 0.1 * loss.item()
            bar.note(f"loss {smoothed:.2f}")
            bar.advance()
    model.eval()


@torch.inference_mode()
def mean_loss(model: nn.Module, rows: list[list[int]], pad_id: int, batch_tokens: int) -> float:
    """Mean cross-entropy in nats over every token of `rows` that has one before it."""
    total, count = 0.0, 0
    for batch in length_batches(rows, batch_tokens):
        inputs, labels = _padded(batch, pad_id)
        tokens = int((labels[:, 1:] != IGNORED).sum())
        total += _loss(model, inputs, labels).item() * tokens
        count += tokens
    return total / count


def unigram_loss(train: Iterable[list[int]], held_out: Iterable[list[int]], vocab_size: int) -> float:
    """What a model scores on `held_out` that knows only how often each token comes (add-one smoothed), in nats."""
    seen = Counter(token for row in train for token in row[1:])
    total = sum(seen.values()) + vocab_size
    losses = [-math.log((seen[token] + 1) / total) for row in held_out for token in row[1:]]
    return sum(losses) / len(losses)


def length_batches(rows: list[list[int]], batch_tokens: int) -> list[list[list[int]]]:
    """Rows of like length together, each batch within `batch_tokens` when padded to its longest row.

    A row alone in a batch may be longer. Rows stay apart and start at position 0, as prompts do later.
    """
    batches: list[list[list[int]]] = []
    for row in sorted(rows, key=len):
        if not batches or (len(batches[-1]) + 1) * len(row) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _endless_batches(rows: list[list[int]], pad_id: int, settings: DemoSettings) -> Iterator[tuple[Tensor, Tensor]]:
    rng = Random(settings.seed)
    while True:
        # Shuffled first, so that rows of one length meet others in each epoch.
        rows = rng.sample(rows, len(rows))
        batches = length_batches(rows, settings.batch_tokens)
        for batch in rng.sample(batches, len(batches)):
            yield _padded(batch, pad_id)


def _padded(batch: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids and labels. No mask is needed: a causal model never looks right."""
    longest = max(map(len, batch))
    inputs = torch.tensor([row + [pad_id] * (longest - len(row)) for row in batch])
    labels = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in batch])
    return inputs, labels


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=inputs, use_cache=False).logits
    targets = labels[:, 1:].reshape(-1)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED)


def _optimizers(model: nn.Module, settings: DemoSettings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, Adam for embedding, head and norms."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        in_layer = ".layers." in name and parameter.ndim == 2
        (matrices if in_layer else others).append(parameter)
    return [
        Muon(matrices, lr=settings.matrix_learning_rate),
        torch.optim.Adam(others, lr=settings.learning_rate, betas=(0.9, 0.95)),
    ]


def _learning_rate_share(step: int, settings: DemoSettings) -> float:
    """Linear up over the warm-up, then linear down to nearly zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return max(0.01, (settings.steps - step) / (settings.steps - settings.warmup_steps))
