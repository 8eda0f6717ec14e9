"""Tests of weights that need all their slabs: the same bytes as one by one, few in memory, and no deadlock."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aegis.errors import IntegrityError
from aegis.merging.base_weights import RoundTrip
from aegis.merging.merged_weights import MergePlan
from aegis.merging.nf4_round_trip import Nf4Weight
from aegis.merging.rewrite_shard import RewrittenShard, rewrite_shard
from aegis.model.adapter import load_adapter
from aegis.model.base import find_base
from aegis.model.shards import HEAD, TensorEntry
from aegis.runs.manifest import file_sha256
from aegis.soul.file import load_soul
from tests.conftest import MakeRandom
from tests.trained import MakeTrained

SLAB_BYTES = 512


@pytest.fixture
def plan(make_random: MakeRandom, make_trained: MakeTrained, monkeypatch: pytest.MonkeyPatch) -> MergePlan:
    """Return the plan of a model whose weights have many slabs and whose norms have one."""
    for module in ("rewrite_shard", "merged_weights"):
        monkeypatch.setattr(f"aegis.merging.{module}.SLAB_BYTES", SLAB_BYTES)
    trained = make_trained(make_random("llama"))
    base = find_base(str(trained.base))
    adapter, soul = load_adapter(trained.adapter), load_soul(trained.adapter / "soul.safetensors")
    return MergePlan.make(base, adapter, soul, torch.float16, RoundTrip.of(base, trained.adapter))


def rewrite(plan: MergePlan, target: Path) -> tuple[RewrittenShard, int]:
    (file,) = plan.base.shards.files
    advanced: list[int] = []
    return rewrite_shard(plan, file, target, advanced.append), sum(advanced)


def test_a_rewritten_shard_has_the_tensors_that_the_plan_makes_one_by_one(plan: MergePlan, tmp_path: Path) -> None:
    """Weights of different sizes leave beside one another, with norms between them; both hashes are the files'."""
    assert plan.round_trip is not None
    entries = plan.base.shards.entries
    counts = {len(list(entries[name].slabs(SLAB_BYTES))) for name in plan.round_trip.weights}
    assert len(counts) > 1
    assert min(counts) > 1
    found, advanced = rewrite(plan, tmp_path / "merged.safetensors")
    written = load_file(tmp_path / "merged.safetensors")
    assert written.keys() == entries.keys()
    for name, entry in entries.items():
        alone = torch.cat([rows for _, _, rows in plan.slabs(name, entry)])
        if name == HEAD:  # its product may be summed up in another order
            assert torch.allclose(written[name], alone, atol=1e-3)
        else:
            assert torch.equal(written[name], alone), name
    assert found.sha256 == file_sha256(tmp_path / "merged.safetensors")
    assert found.source_sha256.hex() == file_sha256(plan.base.shards.files[0])
    assert advanced == plan.out_bytes


def test_few_weights_are_in_memory_at_once(plan: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing keeps up with reading."""
    begun: list[weakref.ref[Nf4Weight]] = []
    most = 0

    def begin(trip: RoundTrip, entry: TensorEntry) -> Nf4Weight:
        nonlocal most
        weight = Nf4Weight(entry.shape, trip.dtype, trip.device)
        begun.append(weakref.ref(weight))
        most = max(most, sum(reference() is not None for reference in begun))
        return weight

    monkeypatch.setattr(RoundTrip, "begin", begin)
    rewrite(plan, tmp_path / "merged.safetensors")
    assert plan.round_trip is not None
    assert len(begun) == len(plan.round_trip.weights) > 6
    assert most <= 6


def test_a_file_that_ends_inside_a_weight_is_an_error(plan: MergePlan, tmp_path: Path) -> None:
    """The file was cut after its headers were read; no thread waits for its missing rows."""
    (file,) = plan.base.shards.files
    last = max(plan.base.shards.entries.values(), key=lambda entry: entry.offset_bytes)
    weight = next(
        entry for name, entry in plan.base.shards.entries.items() if plan.round_trip and name in plan.round_trip.weights
    )
    with file.open("r+b") as handle:
        handle.truncate(weight.offset_bytes + weight.bytes // 2)
    assert weight != last
    with pytest.raises(IntegrityError, match="ends inside"):
        rewrite(plan, tmp_path / "merged.safetensors")


def test_a_known_hash_of_the_source_is_not_computed_again(plan: MergePlan, tmp_path: Path) -> None:
    """A wrong one shows who was believed; what is written is the same."""
    (file,) = plan.base.shards.files
    computed, _ = rewrite(plan, tmp_path / "computed.safetensors")
    known = rewrite_shard(plan, file, tmp_path / "known.safetensors", lambda _count: None, b"known before")
    assert known.source_sha256 == b"known before" != computed.source_sha256
    assert known.sha256 == computed.sha256
