"""Checks before the training that llama.cpp converts a base's tokenizer and gives texts the same token ids.

llama.cpp's converter knows a byte-level tokenizer by a hash of its ids for a fixed text, and refuses an unknown one; it
also refuses a Phi-3 without tokenizer.model. Only the converter knows all of its reasons, so it is run on config and
tokenizer alone, which takes seconds, most of them to start: a training reads its data meanwhile. Its output is cached,
and gives the ids of hard strings and of the user's rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aegis import progress
from aegis.background import Background
from aegis.config.train_settings import TrainConfig
from aegis.data.dataset import Prepared
from aegis.data.training_set import first_rows
from aegis.errors import AegisError, ToolError, UnsupportedModelError
from aegis.llama_cpp import (
    PreparedTool,
    Runtime,
    convert,
    converter_at_hand,
    converter_digest,
    prepared_converter,
)
from aegis.messages import Bilingual, phrase
from aegis.model.base import TOKENIZER_FILES, Base
from aegis.model.sidecars import copy_tokenizer, write_config
from aegis.model.vocabulary import name_for_llama_cpp
from aegis.runs import disk
from aegis.runs.manifest import file_sha256
from aegis.verification.gguf_checks import check_pieces
from aegis.verification.heldout_text import OWN_TEXTS, own_texts
from aegis.verification.token_parity import TokenIds, compare_tokens

_KEPT = "vocabularies"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@contextmanager
def converted_vocabulary(base: Base, tree: Path | None = None, *, keep: bool = True) -> Iterator[Path | None]:
    """Yield a GGUF of a base's tokenizer without weights; None if the converter is not on this machine yet."""
    with converting_vocabulary(base, tree, keep=keep) as converting:
        yield converting.result()


@contextmanager
def converting_vocabulary(base: Base, tree: Path | None = None, *, keep: bool = True) -> Iterator[VocabularyConversion]:
    """Make the GGUF of `converted_vocabulary` beside the block; if the block never asks for it, its end waits for it.

    The converter's process starts at once, and reads nothing of the base until the block begins the conversion.

    Args:
        tree: the llama.cpp checkout that the export will use; None for LLAMA_CPP_DIR's or the pinned one.
        keep: read it from the cache and keep it there; without it, nothing is left on the disk.

    Raises:
        UnsupportedModelError: the converter refuses the tokenizer; the message has its reason.
        EnvironmentFault: the disk has no space.
    """
    found = converter_at_hand(tree)
    if found is None:
        progress.say(phrase("vocabulary.not_here"))
    with TemporaryDirectory(prefix="aegis-vocabulary-") as scratch, ExitStack() as started:
        conversion = VocabularyConversion(base, Path(scratch), found, keep)
        started.callback(conversion.end)  # after its process: it removes what that has written
        if found is not None and not conversion.kept.is_file():
            conversion.prepared = started.enter_context(prepared_converter(found))
        yield conversion
        conversion.result()


@dataclass
class VocabularyConversion:
    """Makes a tokenizer's GGUF, or finds it in the cache, from `begin` on.

    Attributes:
        scratch: a folder for what the converter reads, and for the file itself if it is not kept.
        tree: None if the converter is not on this machine yet.
        prepared: see `prepared_converter`.
    """

    base: Base
    scratch: Path
    tree: Path | None
    keep: bool
    prepared: PreparedTool | None = None
    _running: Background[Path | None] | None = None

    def begin(self) -> Background[Path | None]:
        """Run in the background from now on."""
        self._running = self._running or Background(self._made)
        return self._running

    def result(self) -> Path | None:
        """Wait for the end; return the GGUF, or raise what it raised."""
        return self.begin().result()

    def end(self) -> None:
        """Wait for the end, whatever it is."""
        if self._running is not None:
            self._running.end()

    @cached_property
    def kept(self) -> Path:
        """The file's path in the cache."""
        assert self.tree is not None
        return disk.cache_place() / _KEPT / f"{_digest(self.base, self.tree)}.gguf"

    def _made(self) -> Path | None:
        if self.tree is None:
            return None
        kept = self.kept
        if kept.is_file():
            return kept
        if not self.keep:
            return self._converted(self.scratch)
        disk.cache_directory()
        with disk.building(kept.parent) as place:
            if not kept.is_file():  # another process may have made it while this one waited
                self._converted(place).replace(kept)
        return kept

    def _converted(self, place: Path) -> Path:
        base, folder = self.base, self.scratch / "model"
        if not any((base.folder / name).is_file() for name in _VOCABULARIES):
            raise UnsupportedModelError("vocabulary.none", folder=base.folder, names=", ".join(_VOCABULARIES))
        progress.say(phrase("vocabulary.asking"))
        folder.mkdir()
        write_config(base, folder)
        copy_tokenizer(base, folder)
        # llama.cpp decides by the name whether a role tag includes the white space after it
        name = name_for_llama_cpp("vocabulary", str(base.config["model_type"]), base.folder)
        out = place / "vocabulary.gguf"
        try:
            convert(folder, out, model_name=name, tree=self.tree, vocab_only=True, prepared=self.prepared)
        except ToolError as error:
            # the rest, a traceback, is in the log
            why = error.why.splitlines()[-1]
            raise UnsupportedModelError("vocabulary.refused", base_name=base.name, why=why) from error
        return out


def our_ids(base: Base, tokenizer: Any, texts: Sequence[str]) -> TokenIds:
    """Return the ids that `check_ids` compares; a training makes them while the converter works.

    Args:
        tokenizer: the base's, in transformers.
        texts: the user's own texts.

    Raises:
        UnsupportedModelError: the chat template fails.
    """
    with _refused_as_other(base):
        return TokenIds.of(tokenizer, texts)


def check_ids(base: Base, vocabulary: Path, ours: TokenIds) -> None:
    """Refuse a base whose tokenizer gives other ids in llama.cpp, as verify would do after the training.

    Args:
        vocabulary: the file of `converted_vocabulary`.

    Raises:
        UnsupportedModelError: added tokens, special tokens or the ids of a text differ.
    """
    with _refused_as_other(base):
        check_pieces(vocabulary, ours.tokenizer)
        with Runtime(vocabulary, vocab_only=True) as runtime:
            parity = compare_tokens(ours, runtime)
    if parity.wrong:
        raise UnsupportedModelError(
            "vocabulary.other_ids",
            base_name=base.name,
            wrong_count=len(parity.wrong),
            compared=parity.compared,
            wrong=Bilingual.joined("\n", parity.wrong[:5]),
        )


@contextmanager
def _refused_as_other(base: Base) -> Iterator[None]:
    try:
        yield
    except AegisError as error:
        raise UnsupportedModelError("vocabulary.other", base_name=base.name, why=error) from error


def sample_texts(config: TrainConfig, data: Prepared, tokenizer: Any, *, keep: bool = True) -> list[str]:
    """Return texts of the user: the first rows, and those that verify will use, held-out rows if there are any."""
    windows = data.train if data.heldout is None else data.heldout
    first = [row.text for row in first_rows(config, tokenizer, OWN_TEXTS, keep=keep)]
    return [*first, *own_texts((piece.tolist() for piece in windows.pieces()), tokenizer)]


def _digest(base: Base, tree: Path) -> str:
    """Hash everything that the result depends on: config, tokenizer and converter."""
    digest = hashlib.sha256((base.chat_template or "").encode())
    ours = [path for name in ("config.json", *TOKENIZER_FILES) if (path := base.folder / name).is_file()]
    for path in ours:
        digest.update(path.name.encode() + bytes.fromhex(file_sha256(path)))
    digest.update(converter_digest(tree).encode())
    return digest.hexdigest()
