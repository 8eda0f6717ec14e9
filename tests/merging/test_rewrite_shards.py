"""Tests that two shards are made at once where there are cores for it: the same bytes, and both end with a failure."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.merging import rewrite_shards as module
from aegis.merging.base_weights import RoundTrip
from aegis.merging.merged_weights import MergePlan
from aegis.merging.rewrite_shard import RewrittenShard
from aegis.merging.rewrite_shards import rewrite_shards
from aegis.model.adapter import load_adapter
from aegis.model.base import find_base
from aegis.soul.file import load_soul
from tests.conftest import MakeRandom
from tests.trained import MakeTrained


@pytest.fixture
def plan(make_random: MakeRandom, make_trained: MakeTrained) -> MergePlan:
    trained = make_trained(make_random("llama", shards=3))
    base = find_base(str(trained.base))
    adapter, soul = load_adapter(trained.adapter), load_soul(trained.adapter / "soul.safetensors")
    return MergePlan.make(base, adapter, soul, torch.float16, None)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda count: monkeypatch.setattr("os.cpu_count", lambda: count)


def all_of(plan: MergePlan, folder: Path) -> tuple[list[RewrittenShard], list[bytes], int]:
    folder.mkdir()
    advanced: list[int] = []
    shards = list(rewrite_shards(plan, folder, advanced.append))
    return shards, [(folder / file.name).read_bytes() for file in plan.base.shards.files], sum(advanced)


def test_the_bytes_are_the_same(plan: MergePlan, tmp_path: Path, cores: Any) -> None:
    """And torch has as many threads afterwards as before."""
    threads = torch.get_num_threads()
    found = []
    for count in (2, 4):
        cores(count)
        found.append(all_of(plan, tmp_path / str(count)))
        assert torch.get_num_threads() == threads
    assert len(plan.base.shards.files) > 2
    assert found[0] == found[1]
    assert found[0][2] == plan.out_bytes


@pytest.mark.parametrize(
    ("count", "makes_round_trip", "at_once"), [(4, False, True), (2, False, False), (4, True, False)]
)
def test_two_run_at_once_with_four_cores(
    plan: MergePlan,
    tmp_path: Path,
    cores: Any,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    makes_round_trip: bool,
    at_once: bool,
) -> None:
    """The first waits for the second; not where a round trip keeps the interpreter busy."""
    second = threading.Event()
    files = plan.base.shards.files

    def rewrite(_plan: MergePlan, file: Path, *_: Any) -> RewrittenShard:
        if file == files[1]:
            second.set()
        met = second.wait(20 if at_once else 0.1) if file == files[0] else True
        return RewrittenShard(b"", int(met), "")

    monkeypatch.setattr(module, "rewrite_shard", rewrite)
    if makes_round_trip:
        plan = replace(plan, round_trip=RoundTrip(frozenset(), torch.bfloat16, torch.device("cpu")))
    cores(count)
    with closing(rewrite_shards(plan, tmp_path, lambda _: None)) as shards:
        assert [shard.bytes for shard in shards] == [int(at_once)] + [1] * (len(files) - 1)


def test_a_failure_of_one_ends_the_other(
    plan: MergePlan, tmp_path: Path, cores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be removed then: nothing writes to it any more."""
    running, ended = threading.Event(), []
    files = plan.base.shards.files

    def rewrite(_plan: MergePlan, file: Path, _target: Path, advance: Any, _known: bytes | None) -> RewrittenShard:
        if file == files[0]:
            assert running.wait(20)
            raise KeyError
        try:
            while True:
                advance(1)
                running.set()
        finally:
            ended.append(file)

    monkeypatch.setattr(module, "rewrite_shard", rewrite)
    cores(4)
    with closing(rewrite_shards(plan, tmp_path, lambda _: None)) as shards, pytest.raises(KeyError):
        next(shards)
    assert ended == [files[1]]
