"""Tests that the compiler's choices among kernels go into a checkpoint and come back, and nothing else does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch._inductor.runtime.autotune_cache import AutotuneCache

from aegis.training.execution.compiler_choices import FILE, load_choices, own_compiler_cache, save_choices

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
BLOCKS = [SimpleNamespace(kwargs={"XBLOCK": size}, num_warps=2, num_stages=1, extra_options=None) for size in (1, 8)]


@pytest.fixture(autouse=True)
def _torchs_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def choices() -> Any:
    """torch's own cache of the choice between the blocks of a kernel."""
    code = Path(os.environ[VARIABLE]) / "ab" / "kernel.py"
    settings: Any = {"autotune_local_cache": True, "autotune_remote_cache": False}
    return AutotuneCache.create(settings, str(code), "d" * 64)


def chosen() -> int | None:
    """The block that torch takes from its cache; None if it would have to measure."""
    found = choices().read_best({}, BLOCKS)
    return None if found is None else found.kwargs["XBLOCK"]


def test_a_resumed_run_has_the_choices_of_the_first(tmp_path: Path) -> None:
    """Every training begins with none, whatever other programs have left in torch's shared cache."""
    with own_compiler_cache():
        save_choices(tmp_path)
        assert not (tmp_path / FILE).exists()
        assert chosen() is None
        choices().save(BLOCKS[1], 1)
        assert chosen() == 8
        save_choices(tmp_path)
    assert VARIABLE not in os.environ
    with own_compiler_cache():
        assert chosen() is None
        load_choices(tmp_path)
        assert chosen() == 8
    with own_compiler_cache():
        assert chosen() is None


def test_a_users_own_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    with own_compiler_cache():
        assert os.environ[VARIABLE] == str(tmp_path / "mine")


def test_only_choices_are_taken_from_a_file(tmp_path: Path) -> None:
    """Neither code, nor a file outside of the cache, nor a file without end."""
    good, name = {"XBLOCK": 1, "num_warps": 2}, "ab/good.best_config"
    odd = {
        "../out.best_config": good,
        "ab/kernel.py": good,
        "/ab/root.best_config": good,
        "ab/deep.best_config": [good],
    }
    (tmp_path / FILE).write_text(
        json.dumps({name: good} | odd | {"ab/nested.best_config": {"x": {}}}), encoding="utf-8"
    )
    with own_compiler_cache():
        load_choices(tmp_path)
        cache = Path(os.environ[VARIABLE])
        assert [path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()] == [name]
        assert not (cache.parent / "out.best_config").exists()
    (tmp_path / FILE).write_text(json.dumps({name: good}) + " " * (4 << 20), encoding="utf-8")
    with own_compiler_cache():
        load_choices(tmp_path)
        assert not any(path.is_file() for path in Path(os.environ[VARIABLE]).rglob("*"))
