"""Loads the kept text of a training: text that the base writes, the user's own, or both; written text is cached."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.data import kept
from aegis.data.kept import Kept, KeptReport
from aegis.data.order import permutation
from aegis.data.packing import Windows
from aegis.data.training_set import load_training_set
from aegis.errors import DataError
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.base_states import release, writing_base
from aegis.model.base_text import WrittenTexts, write_texts
from aegis.model.text_openings import Opening, document_opening, openings
from aegis.runs import disk
from aegis.runs.manifest import digest
from aegis.runs.run import Run

_FORMAT = "aegis-kept 1"
_SEED = 1618
"""Seed of the text that the base writes. It does not depend on the training's seed, so trainings can share the text."""
_MIN_WINDOWS = 2


def load_kept(
    config: TrainConfig, base: Base, tokenizer: Any, device: torch.device, run: Run | None = None
) -> Kept | None:
    """Find or make the kept text that the config asks for; None if keep is switched off.

    Args:
        run: where the text may be if it is not in the cache.

    Raises:
        DataError: there is too little text.
        UsageError, EnvironmentFault, IntegrityError: as in `load_training_set` and `writing_base`.
    """
    if config.keep_weight == 0:
        return None
    source = config.keep_source
    if source == "auto":
        source = "written" if config.keep_data is None else "data"
    from_data = {"written": 0, "data": config.keep_windows, "both": config.keep_windows // 2}[source]
    parts = []
    if from_data < config.keep_windows:
        parts.append(_written(config, base, tokenizer, device, config.keep_windows - from_data, run))
    if from_data:
        parts.append(_from_data(config, tokenizer, from_data))
    return parts[0] if len(parts) == 1 else _both(*parts)


def _from_data(config: TrainConfig, tokenizer: Any, count: int) -> Kept:
    name = str(config.keep_data)
    changed = {"dataset": name, "heldout_rows": 0, "packing": True}
    windows = load_training_set(config.model_copy(update=changed), tokenizer).train
    if len(windows) < _MIN_WINDOWS:
        raise DataError("keep.too_little", name=name, windows=len(windows))
    chosen = permutation(len(windows), _SEED, 0)[:count]
    made = kept.split(kept.select(windows, chosen.tolist()), KeptReport("data", 0, 0, 0))
    if len(chosen) < count:
        progress.warn(phrase("keep.fewer", found=len(chosen), wanted=count))
    report = made.report
    progress.say(phrase("keep.from_data", name=name, windows=report.windows, heldout=report.heldout_windows))
    return made


def _both(written: Kept, data: Kept) -> Kept:
    report = replace(
        written.report,
        source="both",
        key="",
        windows=len(written.train) + len(data.train),
        heldout_windows=len(written.heldout) + len(data.heldout),
        tokens=written.report.tokens + data.report.tokens,
    )
    return Kept(_in_turns([written.train, data.train]), _in_turns([written.heldout, data.heldout]), report)


def _written(
    config: TrainConfig, base: Base, tokenizer: Any, device: torch.device, count: int, run: Run | None
) -> Kept:
    kinds = openings(tokenizer) if config.keep_chats else [document_opening(tokenizer)]
    key = _key(base, tokenizer, config.max_length, count, kinds)
    path = disk.cache_directory() / "kept" / f"{key}.windows"
    found = kept.load(path)
    if found is None and run is not None and (found := kept.of_run(run, key)) is not None:
        kept.store(path, found)
    if found is not None:
        report = found.report
        progress.say(phrase("keep.written_before", windows=report.windows, heldout=report.heldout_windows))
        return found
    began = time.monotonic()
    made = _write(base, tokenizer, device, config.max_length, count, kinds, key)
    release(device)
    kept.store(path, made)
    report = made.report
    progress.say(
        phrase(
            "keep.written",
            windows=report.windows,
            heldout=report.heldout_windows,
            texts=report.texts,
            looping=report.looping,
            too_short=report.too_short,
            seconds=time.monotonic() - began,
        )
    )
    return made


def _key(base: Base, tokenizer: Any, max_length: int, count: int, kinds: Sequence[Opening]) -> str:
    return digest(
        [
            _FORMAT,
            base.weights_hash,
            hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            tokenizer.chat_template,
            {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            max_length,
            count,
            [(opening.ids, opening.follow) for opening in kinds],
        ]
    )[:32]


def _write(
    base: Base,
    tokenizer: Any,
    device: torch.device,
    max_length: int,
    count: int,
    kinds: Sequence[Opening],
    key: str,
) -> Kept:
    shares = [count // len(kinds) + (number < count % len(kinds)) for number in range(len(kinds))]
    written: list[WrittenTexts] = []
    windows: list[Windows] = []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    with (
        writing_base(base, device) as (model, precision),
        progress.task(phrase("keep.writing"), count * max_length, "token") as bar,
    ):
        for number, (opening, share) in enumerate(zip(kinds, shares, strict=True)):
            texts, left = WrittenTexts(), share * max_length
            for texts in write_texts(
                model, tokenizer, opening, windows=share, max_length=max_length, seed=_SEED + number
            ):
                bar.advance(left - (left := texts.missing(share, max_length)))
            written.append(texts)
            windows.append(kept.fill(texts.texts, share, max_length, pad))
    total = sum(map(len, windows))
    if total < _MIN_WINDOWS:
        raise DataError("keep.writes_nothing", windows=total, texts=_sum(written, lambda texts: texts.sampled))
    if total < count:
        progress.warn(phrase("keep.fewer", found=total, wanted=count))
    report = KeptReport(
        "written",
        0,
        0,
        0,
        texts=_sum(written, lambda texts: texts.sampled),
        ended=_sum(written, lambda texts: texts.ended),
        looping=_sum(written, lambda texts: texts.looping),
        too_short=_sum(written, lambda texts: texts.too_short),
        precision=precision,
        key=key,
    )
    return kept.split(_in_turns([part for part in windows if len(part)]), report)


def _sum(written: Sequence[WrittenTexts], count: Callable[[WrittenTexts], int]) -> int:
    return sum(count(texts) for texts in written)


def _in_turns(parts: Sequence[Windows]) -> Windows:
    """Interleave the windows of several sets, so that any stretch of them holds all kinds."""
    turns = itertools.zip_longest(*([(part, number) for number in range(len(part))] for part in parts))
    return kept.joined([chosen for turn in turns for chosen in turn if chosen is not None])
