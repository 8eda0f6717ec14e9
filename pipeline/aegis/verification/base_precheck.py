"""Checks before the training, from config.json and headers, that merge and export can use a base's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from aegis import progress
from aegis.errors import ToolError, UnsupportedModelError
from aegis.llama_cpp import converter_at_hand, converter_digest, try_conversion
from aegis.merging.merged_weights import head_entry
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.empty_model import empty_model
from aegis.model.families import PROVEN
from aegis.model.lora_targets import adapted_weights, resolve_targets
from aegis.model.sidecars import copy_tokenizer, write_config
from aegis.runs import disk
from aegis.verification.export_sidecars import end_tokens

_SKIPPED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
"""Ends of the tensor names that llama.cpp's converter skips (conversion/base.py, prepare_tensors)."""
_TAKEN = "conversions"


def check_base(base: Base, lora_targets: Sequence[str], tree: Path | None = None, *, keep: bool = True) -> None:
    """Refuse a base that can be trained but not merged or converted, with the cause.

    Args:
        lora_targets: the configured targets.
        tree: the llama.cpp checkout that the export will use; None for LLAMA_CPP_DIR's or the pinned one.
        keep: record in the cache that the converter accepts the base; without it, nothing is written.

    Raises:
        IntegrityError: transformers cannot build the base, or it has no LM head.
        UsageError: a target matches no module.
        UnsupportedModelError: tensors have other names than the modules, or the model or llama.cpp does not know a
            tensor.
    """
    model = empty_model(base.folder)
    entries = base.shards.entries
    if lost := [name for name in adapted_weights(model, resolve_targets(model, lora_targets)) if name not in entries]:
        raise UnsupportedModelError(
            "precheck.other_names", base_name=base.name, wanted=lost[0], found=_nearest(lost[0], entries)
        )
    head_entry(base)
    end_tokens(base.folder, base.config)
    if base.config.get("model_type") in PROVEN:
        _refuse_strays(base, type(model).__name__, model.state_dict().keys())
    else:
        # transformers may rename the tensors of such a family: only the converter knows which names it accepts
        _try_conversion(base, tree, keep)


def _nearest(wanted: str, entries: Collection[str]) -> str:
    """Return the tensor whose name shares the longest end with the wanted one; "" if there are no tensors."""

    def in_common(name: str) -> int:
        return next((n for n, (a, b) in enumerate(zip(name[::-1], wanted[::-1], strict=False)) if a != b), len(name))

    return max(entries, key=in_common, default="")


def _refuse_strays(base: Base, architecture: str, known: Collection[str]) -> None:
    stray = [name for name in base.shards.entries if name not in known and not name.endswith(_SKIPPED)]
    if stray:
        raise UnsupportedModelError(
            "precheck.stray_tensors",
            base_name=base.name,
            architecture=architecture,
            count=len(stray),
            stray=", ".join(sorted(stray)[:5]),
        )


def _try_conversion(base: Base, tree: Path | None, keep: bool) -> None:
    """Let the converter check every tensor's name; names that it has accepted are not checked again."""
    found = converter_at_hand(tree)
    if found is None:
        return
    shapes = sorted((entry.name, str(entry.dtype), entry.shape) for entry in base.shards.entries.values())
    digest = hashlib.sha256(repr((base.config, converter_digest(found), shapes)).encode()).hexdigest()
    taken = disk.cache_place() / _TAKEN / digest
    if taken.is_file():
        return
    progress.say(phrase("precheck.asking"))
    with TemporaryDirectory(prefix="aegis-conversion-") as scratch:
        folder = Path(scratch)
        write_config(base, folder)
        copy_tokenizer(base, folder)
        try:
            for shard in base.shards.files:
                (folder / shard.name).symlink_to(shard)
        except OSError:  # on Windows, not every user may create links; export will find the fault
            return
        try:
            try_conversion(folder, tree=found)
        except ToolError as error:
            raise UnsupportedModelError("precheck.not_converted", base_name=base.name, why=error.why) from error
    if keep:
        disk.cache_directory()
        taken.parent.mkdir(exist_ok=True)
        taken.touch()
