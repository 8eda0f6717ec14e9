"""Keeps the compiler's choices with a run, so that a resumed run computes with the same kernels.

On a GPU, torch.compile measures variants of a kernel once and takes the fastest. They round differently, and another
process may measure otherwise. torch writes each choice beside the compiled code as NAME.best_config, JSON with the
numbers of the variant. A checkpoint has all of them in one file. They are data: no compiled code is kept or loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aegis.background import Background

FILE = "compiler_choices.json"
_MAX_BYTES = 4 << 20
"""A choice has about 200 bytes, and a training some dozens of them."""
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_NAME = re.compile(r"\w{1,8}/\w{1,128}\.best_config")


@contextmanager
def own_compiler_cache() -> Iterator[None]:
    """Let torch.compile begin with an empty cache while the block runs, unless the user has set its directory.

    Only so are the choices in the cache those of this process: others may write to torch's shared one.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir, temporary_cache_dir

    if os.environ.get(_VARIABLE, default_cache_dir()) != default_cache_dir():
        yield
        return
    with (
        TemporaryDirectory(prefix="aegis-compiled-", ignore_cleanup_errors=True) as folder,
        temporary_cache_dir(folder),
    ):
        yield


@contextmanager
def compiler_at_work() -> Iterator[None]:
    """Let torch.compile work in the block, and end its processes afterwards: they hold memory."""
    from torch._inductor.async_compile import shutdown_compile_workers

    try:
        with own_compiler_cache():
            yield
    finally:
        Background(shutdown_compile_workers)


def save_choices(folder: Path) -> None:
    """Write the choices made so far to `folder`; nothing if there are none, or far too many of other programs."""
    files = sorted(_cache().glob("*/*.best_config"))
    found = {f"{file.parent.name}/{file.name}": json.loads(file.read_text(encoding="utf-8")) for file in files}
    text = json.dumps(found, indent=1)
    if found and len(text) <= _MAX_BYTES:
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def load_choices(folder: Path) -> None:
    """Let torch.compile take the choices in `folder`, if it has any; what is not a choice is left out."""
    path = folder / FILE
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return
    for name, choice in json.loads(path.read_text(encoding="utf-8")).items():
        if _NAME.fullmatch(name) and _is_choice(choice):
            target = _cache() / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(choice), encoding="utf-8")


def _cache() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def _is_choice(choice: Any) -> bool:
    """Whether it is an object of plain values; a choice of torch's has numbers, flags and hashes."""
    plain = (int, float, str, bool, type(None))
    return isinstance(choice, dict) and all(isinstance(value, plain) for value in choice.values())
