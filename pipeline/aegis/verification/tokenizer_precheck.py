"""What llama.cpp's converter says of a base's tokenizer, asked before the training instead of after it.

It knows a byte-level tokenizer by a hash of the ids it gives a fixed text, and refuses one it does not know; a Phi-3
without tokenizer.model it refuses as well. Only the converter itself knows all of its reasons, so it is run on config
and tokenizer alone, which takes seconds; a tokenizer that it took is not asked about again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

from aegis import progress
from aegis.errors import ToolError, UnsupportedModelError
from aegis.llama_cpp import convert, tree_at_hand
from aegis.messages import phrase
from aegis.model.base import TOKENIZER_FILES, Base
from aegis.model.sidecars import copy_tokenizer, write_config
from aegis.runs import disk

_KNOWN = "vocabularies"


def check_vocabulary(base: Base, tree: Path | None = None, *, keep: bool = True) -> None:
    """Refuse a base whose tokenizer the converter would refuse.

    Args:
        tree: the llama.cpp checkout that the export will use, if not LLAMA_CPP_DIR's or the pinned one.
        keep: remember in the cache that it was taken; without it, nothing is written.

    Raises:
        UnsupportedModelError: with what the converter said.
        EnvironmentFault: no space.
    """
    found = tree_at_hand(tree)
    if found is None:
        progress.say(phrase("vocabulary.not_here"))
        return
    known = disk.cache_place() / _KNOWN / _digest(base.folder, found)
    if known.is_file():
        return
    progress.say(phrase("vocabulary.asking"))
    with TemporaryDirectory(prefix="aegis-vocabulary-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write_config(base, folder)
        copy_tokenizer(base, folder)
        try:
            convert(folder, Path(scratch) / "out.gguf", model_name="vocabulary", tree=found, vocab_only=True)
        except ToolError as error:
            raise UnsupportedModelError("vocabulary.refused", base_name=base.name, why=error.why) from error
    if keep:
        disk.cache_directory()
        known.parent.mkdir(exist_ok=True)
        known.touch()


def _digest(folder: Path, tree: Path) -> str:
    """A hash of all that the answer depends on: config, tokenizer and converter."""
    digest = hashlib.sha256()
    ours = [path for name in ("config.json", *TOKENIZER_FILES) if (path := folder / name).is_file()]
    for path in (*ours, *sorted(tree.glob("conversion/*.py")), *sorted(tree.glob("*.py"))):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
