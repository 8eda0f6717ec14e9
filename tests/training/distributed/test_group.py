"""Several processes, as far as one can tell from inside one: who it is, what it is told, how long it waits.

What they do together is tested through torchrun in tests/stages/test_train_together.py.
"""

from __future__ import annotations

import pytest
import torch

from aegis.errors import AegisError, DataError, EnvironmentFault, PeerEnded
from aegis.training.distributed import group as module
from aegis.training.distributed.group import SINGLE, ProcessGroup, process_group, world_size


@pytest.mark.parametrize(("size", "count"), [(None, 1), ("1", 1), ("0", 1), ("4", 4)])
def test_the_launcher_says_how_many(monkeypatch: pytest.MonkeyPatch, size: str | None, count: int) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert world_size() == count


def test_a_stray_variable_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """WORLD_SIZE without the rest, as some clusters set it: exit 3 and what to do."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EnvironmentFault, match="do not come together") as caught, process_group(torch.device("cpu")):
        pass
    assert "unset WORLD_SIZE" in caught.value.fix
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(EnvironmentFault, match="WORLD_SIZE is 'two'"):
        world_size()


def test_alone_nothing_is_shared() -> None:
    numbers = torch.tensor([1.0, 2.0])
    SINGLE.all_reduce(numbers)
    SINGLE.barrier()
    assert numbers.tolist() == [1.0, 2.0]
    assert SINGLE.broadcast(lambda: [1, "a"]) == [1, "a"]
    with pytest.raises(DataError, match="x"), SINGLE.main_process_first():
        raise DataError("dataset.empty", name="x")


def test_a_step_that_does_not_end_is_given_up_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is not dead; but when the launcher wants an end, the step has its grace and no more."""
    monkeypatch.setattr(module, "_GRACE_S", 0.01)
    two = ProcessGroup(0, 2)
    polls = iter([False] * 50 + [True])
    two.wait(lambda: next(polls), lambda: False)
    with pytest.raises(EnvironmentFault, match="another process of this training ended"):
        two.wait(lambda: False, lambda: True)
    SINGLE.wait(lambda: False, lambda: True)


@pytest.mark.parametrize(
    ("error", "parted"), [(PeerEnded("together.peer_ended", why="x"), 0), (DataError("dataset.empty", name="x"), 1)]
)
def test_whoever_lost_a_peer_does_not_wait_for_it_at_parting(
    monkeypatch: pytest.MonkeyPatch, error: AegisError, parted: int
) -> None:
    """On GPUs it would wait for ever, with the message still to be told. torch.distributed is stood in for."""
    partings = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(module.dist, "new_group", lambda **_: None)
    monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(module.dist, "destroy_process_group", lambda: partings.append(1))
    with pytest.raises(type(error)), process_group(torch.device("cpu")):
        raise error
    assert len(partings) == parted
