"""Finds the base model on disk or on the Hub, checks it, and computes the hash that identifies its weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aegis import progress
from aegis.background import two_at_a_time
from aegis.config.presets import DEMO
from aegis.errors import EnvironmentFault, IntegrityError, UnsupportedModelError, UsageError, first_line
from aegis.hub.models import DESCRIPTION, download
from aegis.limits import VOCABULARY, read_json
from aegis.messages import phrase
from aegis.model.adapter import CONFIG as ADAPTER_CONFIG
from aegis.model.base_name import is_on_hub, no_base
from aegis.model.empty_model import load_config
from aegis.model.families import check_family, check_head_bias, unproven_parts
from aegis.model.safe_folder import check_own_files, refuse_spoiled
from aegis.model.shards import ShardSet
from aegis.model.tokenizer_growth import refuse_growth
from aegis.model.vocabulary import vocabulary_of
from aegis.runs import named_paths
from aegis.runs.manifest import file_sha256

_PARTS = {"head": "base.part_head", "tokenizer": "base.part_tokenizer", "rope": "base.part_rope"}

TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Base:
    """A base that was checked.

    Attributes:
        name: the user's name for it: a Hub id, a folder or "demo".
        folder: the folder with its files.
        revision: the commit on the Hub; None for a folder.
        chat_template: a template in place of the one in its files, if there is one.
    """

    name: str
    folder: Path
    revision: str | None
    chat_template: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_config(self.folder)

    @cached_property
    def shards(self) -> ShardSet:
        return ShardSet.open(self.folder)

    @cached_property
    def weights_hash(self) -> str:
        """The sha256 of the weights alone, without the config; a soul records it to identify its base."""
        return hash_weights(self.shards)

    @cached_property
    def tied(self) -> bool:
        """Whether the LM head is the embedding matrix.

        Raises:
            IntegrityError: transformers cannot read config.json.
        """
        return bool(load_config(self.folder).tie_word_embeddings)

    def tokenizer(self) -> Any:
        """Load the tokenizer.

        Raises:
            IntegrityError: transformers cannot read it.
        """
        tokenizer = load_tokenizer(self.folder)
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer


def find_base(name: str, revision: str | None = None) -> Base:
    """Find a base by Hub id, by folder or as "demo", and check that it can be used.

    Raises:
        UsageError: there is no such folder or repository.
        EnvironmentFault: the Hub cannot be reached, or refuses access.
        UnsupportedModelError: the pipeline cannot reproduce this base exactly.
        IntegrityError: its files are damaged.
    """
    commit = None
    if name == DEMO:
        from aegis.demo.base import ensure_demo_base

        folder = ensure_demo_base()
    elif named_paths.is_folder(name):
        folder = _folder(name, revision)
    elif not is_on_hub(name):
        raise no_base(name)
    else:
        folder, commit = download(name, revision)
    base = Base(name, folder, commit)
    check_family(base.config)
    if (folder / ADAPTER_CONFIG).is_file():
        raise IntegrityError("base.adapter_beside", folder=folder, adapter_config=ADAPTER_CONFIG)
    check_head_bias(base.config, base.shards.entries)
    _warn_unproven(base)
    return base


def _folder(name: str, revision: str | None) -> Path:
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise no_base(name)
    if revision is not None:
        raise UsageError("base.revision_of_folder", folder=folder, revision=revision)
    return folder


def _warn_unproven(base: Base) -> None:
    parts = unproven_parts(base.config, base.shards.entries, vocabulary_of(base.folder))
    if parts is None:
        progress.warn(phrase("base.unproven_family", config=base.config["model_type"]))
    for part, kind in (parts or {}).items():
        name = phrase(_PARTS[part])
        progress.warn(phrase("base.unproven_part", config=base.config["model_type"], part=name, kind=kind))


def read_config(folder: Path) -> dict[str, Any]:
    """Check a model folder's files and read its config.json; every other file is read after it.

    Raises:
        UsageError: there is no config.json.
        IntegrityError: it is not a JSON object, or a link leads out of the folder.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise UsageError("base.no_config", folder=folder)
    check_own_files(folder)
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise IntegrityError("base.unreadable", path=path, error=str(error)) from None
    if not isinstance(config, dict):
        raise IntegrityError("base.not_an_object", path=path)
    return config


def hash_weights(shards: ShardSet) -> str:
    """Read every shard, two at a time, and return the hash of the weights.

    Raises:
        IntegrityError: a shard in the Hub's cache does not have the hash that the Hub gave; it is removed.
    """
    total = sum(path.stat().st_size for path in shards.files)
    digests = []
    with progress.task(phrase("base.hashing"), total, "B") as bar:
        hashes = two_at_a_time(partial(file_sha256, path, bar.advance) for path in shards.files)
        for path, found in zip(shards.files, hashes, strict=True):
            refuse_spoiled(path, found)
            digests.append(bytes.fromhex(found))
    return weights_hash_of(digests)


def weights_hash_of(digests: Iterable[bytes]) -> str:
    """Return the sha256 of the shards' sha256 digests, in the order of the shards' names."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer from the base's folder.

    Never load it from an adapter folder: without a config.json there, the same text could get other ids.

    Raises:
        IntegrityError: transformers cannot read it.
        UnsupportedModelError: it makes texts, tokens or ids that no known tokenizer does.
    """
    refuse_growth(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        highest = max(tokenizer.get_vocab().values(), default=0)
    except Exception as error:  # transformers passes on what its parsers raise
        raise IntegrityError("base.no_tokenizer", folder=folder, error=first_line(error)) from error
    if highest >= VOCABULARY:  # a list of all ids would fill the memory
        raise UnsupportedModelError("base.token_id", folder=folder, token=highest, most=VOCABULARY)
    return tokenizer


@contextmanager
def peek_base(name: str, revision: str | None = None) -> Iterator[Base]:
    """Yield a base whose config and tokenizer can be read; its weights may be missing, and nothing is kept.

    Files that are not on this machine are downloaded into a folder that is removed at the end of the block. Before the
    demo's base is made, it has only a config.

    Raises:
        UsageError, EnvironmentFault, UnsupportedModelError, IntegrityError: as `find_base` does.
    """
    with TemporaryDirectory(prefix="aegis-peek-") as scratch:
        commit = None
        if name == DEMO:
            from aegis.demo.base import describe_demo_base

            folder = describe_demo_base(Path(scratch))
        elif is_on_hub(name):
            try:
                folder, commit = download(name, revision, local_files_only=True)
            except EnvironmentFault:
                folder, commit = download(name, revision, DESCRIPTION, local_dir=scratch)
        else:
            folder = _folder(name, revision)
        base = Base(name, folder, commit)
        check_family(base.config)
        yield base
