"""The base model as it lies on disk: where it comes from, what it is, and the hash that names its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aegis import progress
from aegis.config.settings import DEMO
from aegis.errors import EnvironmentFault, IntegrityError, UsageError, first_line
from aegis.hub import is_hub_id
from aegis.messages import phrase
from aegis.model.adapter import CONFIG as ADAPTER_CONFIG
from aegis.model.empty import load_config
from aegis.model.families import check_family, check_head_bias, unproven_parts
from aegis.model.hub_download import DESCRIPTION, download
from aegis.model.own_files import check_own_files, refuse_spoiled
from aegis.model.shards import ShardSet
from aegis.model.vocabulary import vocabulary_of

_READ_BYTES = 1 << 24
_PARTS = {"head": "base.part_head", "tokenizer": "base.part_tokenizer", "rope": "base.part_rope"}

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Base:
    """A checked base.

    Attributes:
        name: what the user called it, a Hub id, a folder or "demo".
        folder: where its files are.
        revision: the Hub commit it was resolved to, or None for a folder.
    """

    name: str
    folder: Path
    revision: str | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it stands in the folder."""
        return read_config(self.folder)

    @cached_property
    def shards(self) -> ShardSet:
        return ShardSet.open(self.folder)

    @cached_property
    def weights_hash(self) -> str:
        """sha256 over the weights, whatever the config beside them says: the hash a soul knows its base by."""
        return hash_weights(self.shards)

    @cached_property
    def tied(self) -> bool:
        """Whether the LM head is the embedding matrix.

        Raises:
            IntegrityError: transformers cannot make sense of config.json.
        """
        return bool(load_config(self.folder).tie_word_embeddings)


def find_base(name: str, revision: str | None = None) -> Base:
    """Find a base by Hub id, folder or the name of the embedded default, and check that it can be used.

    Raises:
        UsageError: no such folder or repository.
        EnvironmentFault: the Hub cannot be reached, or does not let us in.
        UnsupportedModelError: the base cannot come out of the pipeline whole.
        IntegrityError: its files are damaged.
    """
    commit = None
    if name == DEMO:
        from aegis.demo.base import ensure_demo_base

        folder = ensure_demo_base()
    elif os.path.isdir(name):  # noqa: PTH112 (unlike Path's, it is False for a name too long)
        folder = Path(name).resolve()
    elif not _is_on_hub(name):
        raise _no_base(name)
    else:
        folder, commit = download(name, revision)
    base = Base(name, folder, commit)
    check_family(base.config)
    if (folder / ADAPTER_CONFIG).is_file():
        raise IntegrityError("base.adapter_beside", folder=folder, adapter_config=ADAPTER_CONFIG)
    check_head_bias(base.config, base.shards.entries)
    _warn_unproven(base)
    return base


def _warn_unproven(base: Base) -> None:
    parts = unproven_parts(base.config, base.shards.entries, vocabulary_of(base.folder))
    if parts is None:
        progress.warn(phrase("base.unproven_family", config=base.config["model_type"]))
    for part, kind in (parts or {}).items():
        name = phrase(_PARTS[part])
        progress.warn(phrase("base.unproven_part", config=base.config["model_type"], part=name, kind=kind))


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, the first that is read of any model folder.

    Raises:
        UsageError: there is none.
        IntegrityError: it is not a JSON object, or the folder holds what is not its own.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise UsageError("base.no_config", folder=folder)
    check_own_files(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError("base.unreadable", path=path, error=str(error)) from None
    if not isinstance(config, dict):
        raise IntegrityError("base.not_an_object", path=path)
    return config


def hash_weights(shards: ShardSet) -> str:
    """Read every shard, and return the hash of the weights.

    Raises:
        IntegrityError: a shard in the Hub's cache is not what the Hub said it is; it is removed.
    """
    total = sum(path.stat().st_size for path in shards.files)
    digests = []
    with progress.task(phrase("base.hashing"), total, "B") as bar:
        for path in shards.files:
            inner = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    inner.update(block)
                    bar.advance(len(block))
            refuse_spoiled(path, inner.hexdigest())
            digests.append(inner.digest())
    return weights_hash_of(digests)


def weights_hash_of(digests: Iterable[bytes]) -> str:
    """The sha256 over the sha256 of each shard, in the order of their names."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def load_tokenizer(folder: Path) -> Any:
    """Load the base's own tokenizer, from the base's folder and nowhere else.

    An adapter folder without config.json would give another tokenizer with other ids for the same text.

    Raises:
        IntegrityError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise IntegrityError("base.no_tokenizer", folder=folder, error=first_line(error)) from error


@contextmanager
def peek_base(name: str, revision: str | None = None) -> Iterator[Base]:
    """A base's config and tokenizer, for looking at: its weights may not be here, and nothing is written or kept.

    What is not on this machine is fetched into a folder that goes when the block ends; of the embedded default, only
    the config can be had before it is made.

    Raises:
        UsageError, EnvironmentFault, UnsupportedModelError, IntegrityError: as `find_base` does.
    """
    with TemporaryDirectory(prefix="aegis-glimpse-") as scratch:
        commit = None
        if name == DEMO:
            from aegis.demo.base import describe_demo_base

            folder = describe_demo_base(Path(scratch))
        elif _is_on_hub(name):
            try:
                folder, commit = download(name, revision, local_files_only=True)
            except EnvironmentFault:
                folder, commit = download(name, revision, DESCRIPTION, local_dir=scratch)
        else:
            folder = Path(name).resolve()
            if not folder.is_dir():
                raise _no_base(name)
        base = Base(name, folder, commit)
        check_family(base.config)
        yield base


def _is_on_hub(name: str) -> bool:
    # os.path's functions are False for a name too long, Path's are not
    return is_hub_id(name) and not os.path.exists(name)  # noqa: PTH110


def _no_base(name: str) -> UsageError:
    return UsageError("base.none", name=name)
