"""Loads the models of a run for a chat: its GGUF, the live model as it was trained, and the base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.chat.conversation import ChatModel
from aegis.chat.gguf_model import GgufModel
from aegis.config.recorded import recorded_config
from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError
from aegis.llama_cpp import BatchRuntime, Runtime, trained_context
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run

if TYPE_CHECKING:  # it loads torch
    from aegis.chat.transformers_model import TransformersModel
    from aegis.model.load import Precision


@contextmanager
def load_models(
    run: Run | None, gguf: Path | None, *, live: bool, compare: bool, context: int | None
) -> Iterator[list[ChatModel]]:
    """Load the models for a chat while the block runs; with `compare`, the base comes first.

    Args:
        run: needed for the live model and the base.
        gguf: a file to use instead of the run's.
        live: load base (in training's precision, usually NF4), adapter and soul in transformers, instead of the GGUF.
        context: maximum tokens of a conversation; the model's own if None.

    Raises:
        UsageError: the live model or the base is wanted, and the run is not known; or as in `load_transformers_models`.
        IntegrityError, EnvironmentFault: as in `load_transformers_models` and `Runtime`.
    """
    with ExitStack() as open_models:
        found: list[ChatModel] = []
        if live or compare:
            if run is None:
                raise UsageError("talk.no_base")
            found += open_models.enter_context(
                load_transformers_models(run, live=live, compare=compare, context=context)
            )
        if not live:
            path = gguf or _known(run).first_gguf()
            runtime = Runtime(path, n_ctx=context or trained_context(path))
            found.append(GgufModel(open_models.enter_context(runtime)))
        yield found


def _known(run: Run | None) -> Run:
    if run is None:
        raise UsageError("talk.which")
    return run


@contextmanager
def load_transformers_models(run: Run, *, live: bool, compare: bool, context: int | None) -> Iterator[list[ChatModel]]:
    """Load the base in training's precision, the live model, or both, in this order.

    Raises:
        IntegrityError, UsageError, EnvironmentFault: as in `load_base` and `live_model`.
    """
    from aegis.chat.transformers_model import TransformersModel
    from aegis.model.context import context_tokens
    from aegis.model.device import choose_device
    from aegis.model.live_model import live_model
    from aegis.model.load import load_base
    from aegis.model.trained_base import trained_base

    load_in: Precision = recorded_config(read_manifest(run.adapter), TrainConfig).load_in
    base = trained_base(run.adapter)
    tokenizer, device = base.tokenizer(), choose_device("auto")
    length = context or context_tokens(base.config)
    with ExitStack() as open_models:
        found: list[ChatModel] = []
        if compare:
            found.append(TransformersModel("base", load_base(base.folder, load_in, device).eval(), tokenizer, length))
        if live:
            model = open_models.enter_context(live_model(base, run.adapter, load_in, device))
            found.append(TransformersModel("live", model, tokenizer, length))
        yield found


@contextmanager
def load_gguf_for_answers(run: Run, threads: int | None = None) -> Iterator[BatchRuntime]:
    """Load the run's GGUF to be asked several questions at once.

    Args:
        threads: as in `Runtime`.

    Raises:
        IntegrityError, EnvironmentFault: as in `Runtime`.
    """
    path = run.first_gguf()
    with BatchRuntime(path, n_ctx=trained_context(path), threads=threads) as runtime:
        yield runtime


def load_for_answers(run: Run, wanted: Sequence[str]) -> Iterator[tuple[str, TransformersModel]]:
    """Yield those of "base" and "trained" that are wanted, each until the next is asked for; the base is loaded once.

    NF4 weights are dequantized once, if there is memory for it, and not at every token; their values are the same.

    Raises:
        IntegrityError, UsageError, EnvironmentFault: as in `load_base` and `made_live`.
    """
    from aegis.chat.transformers_model import TransformersModel
    from aegis.model.context import context_tokens
    from aegis.model.device import choose_device, free_bytes
    from aegis.model.live_model import made_live
    from aegis.model.load import compute_dtype, load_base
    from aegis.model.trained_base import trained_base

    if not wanted:
        return
    load_in: Precision = recorded_config(read_manifest(run.adapter), TrainConfig).load_in
    base, device = trained_base(run.adapter), choose_device("auto")
    weights = sum(math.prod(entry.shape) for entry in base.shards.entries.values())
    # 4 bits, while they are dequantized, and room for the answers
    if load_in == "4bit" and weights * (compute_dtype(device).itemsize + 1) < free_bytes(device):
        load_in = "dequantized"
    model, tokenizer, length = load_base(base.folder, load_in, device), base.tokenizer(), context_tokens(base.config)
    if "base" in wanted:
        yield "base", TransformersModel("base", model.eval(), tokenizer, length)
    if "trained" in wanted:
        with made_live(model, base, run.adapter) as live:
            yield "trained", TransformersModel("live", live, tokenizer, length)
