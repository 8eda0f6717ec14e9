"""Tests of a process group seen from one process: how it begins, what it receives, and its time limit.

tests/stages/test_train_distributed.py trains in several processes through torchrun.
"""

from __future__ import annotations

import pytest
import torch

from aegis.errors import AegisError, DataError, DivergedError, EnvironmentFault, PeerEnded
from aegis.training.distributed import group as module
from aegis.training.distributed.group import SINGLE, ProcessGroup, process_group
from aegis.training.distributed.launcher import world_size


def test_a_world_size_without_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """WORLD_SIZE without the rest, as some clusters set it: exit 3 and what to do."""
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EnvironmentFault) as caught, process_group(torch.device("cpu")):
        pass
    assert caught.value.args[0] == "distributed.not_met"
    assert "unset WORLD_SIZE" in caught.value.fix
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(EnvironmentFault) as caught:
        world_size()
    assert caught.value.args[0] == "distributed.world_size"


def test_a_single_process_shares_nothing() -> None:
    numbers = torch.tensor([1.0, 2.0])
    SINGLE.all_reduce(numbers)
    SINGLE.barrier()
    assert numbers.tolist() == [1.0, 2.0]
    assert SINGLE.broadcast(lambda: [1, "a"]) == [1, "a"]
    with pytest.raises(DataError, match="x"), SINGLE.main_process_first():
        raise DataError("dataset.empty", name="x")


def test_a_step_that_does_not_end_is_given_up_after_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow step is waited for; once the launcher asks for an end, the step has its grace period and no more."""
    monkeypatch.setattr(module, "_GRACE_S", 0.01)
    two = ProcessGroup(0, 2)
    polls = iter([False] * 50 + [True])
    two.wait(lambda: next(polls), lambda: False)
    with pytest.raises(EnvironmentFault, match="another process of this training ended"):
        two.wait(lambda: False, lambda: True)
    SINGLE.wait(lambda: False, lambda: True)


DIVERGED = DivergedError("train.diverged", step=8, loss=2.5, norm=1.0)


@pytest.mark.parametrize(
    ("error", "peer_alive", "seen", "destroyed"),
    [
        (PeerEnded("distributed.peer_ended", why="x"), True, PeerEnded, 0),
        (DataError("dataset.empty", name="x"), True, DataError, 1),
        (DIVERGED, True, DivergedError, 1),
        (DIVERGED, False, PeerEnded, 0),
    ],
)
def test_a_process_that_lost_a_peer_does_not_wait_for_it_at_the_end(
    monkeypatch: pytest.MonkeyPatch, error: AegisError, peer_alive: bool, seen: type[AegisError], destroyed: int
) -> None:
    """On GPUs it would wait for ever and never print its message. torch.distributed is a stand-in.

    The peer may also be lost while a diverged training waits for all to leave it together.
    """

    def barrier(_group: object) -> None:
        if not peer_alive:
            raise RuntimeError("Connection closed by peer")

    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(module.dist, "new_group", lambda **_: None)
    monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(module.dist, "barrier", barrier)
    monkeypatch.setattr(module.dist, "destroy_process_group", lambda: calls.append(1))
    with pytest.raises(seen), process_group(torch.device("cpu")):
        raise error
    assert len(calls) == destroyed
