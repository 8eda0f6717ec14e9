"""Several processes, one training: who they are, what they share, and how they end.

The processes are started by torchrun or accelerate, which set RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR. Each takes
its part of every step's windows; gradients are added up, so that all of them make the same update. Process 0 writes and
speaks to people; what it decides (which checkpoint to go on from, that something is wrong) the others are told.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from aegis import progress
from aegis.errors import AegisError, DivergedError, EnvironmentFault, Interrupted, PeerEnded
from aegis.messages import phrase

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a step waits for the others; they may still be loading the base, and process 0 may be saving. After that
they count as dead."""
_PATIENCE = timedelta(days=2)
"""How long they wait for process 0 before training: it may be downloading the base, or hashing a large data set."""
_GRACE_S = 20.0
"""From a launcher's SIGTERM to giving up on a step that does not end; torchrun kills 30 seconds after it."""
_POLL_S = 2e-4


@dataclass(frozen=True)
class ProcessGroup:
    """`parts` processes, of which this is number `rank`.

    Attributes:
        talk: the process group for what is said in the host's memory; None when there is one process.
    """

    rank: int = 0
    world_size: int = 1
    cpu_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and speaks to people."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes.

        Raises:
            PeerEnded: another process has ended.
        """
        if self.world_size > 1:
            with dead_peers_explained():
                dist.all_reduce(tensor)

    def broadcast(self, find: Callable[[], T]) -> T:
        """What `find` returns in process 0, something JSON can hold, in all processes; it is called there alone.

        Raises:
            AegisError: in process 0, what `find` raised.
            SystemExit: in the others then, with the same exit code: process 0 says why.
            PeerEnded: another process has ended.
        """
        if not self.is_main:
            return self._hear()
        with self._failure_told():
            found = find()
        self._broadcast({"found": found})
        return found

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """A block that process 0 goes through before the others.

        Raises:
            SystemExit, PeerEnded: as `told`.
        """
        if not self.is_main:
            self._hear()
            yield
            return
        with self._failure_told():
            yield
        self._broadcast({"found": None})

    def barrier(self) -> None:
        """Wait until every process has come here.

        Raises:
            PeerEnded: another process has ended.
        """
        if self.world_size > 1:
            with dead_peers_explained():
                dist.barrier(self.cpu_group)

    def wait(self, done: Callable[[], bool], asked: Callable[[], bool]) -> None:
        """Wait for the device to be `done`, watchful: it never will be if another process died within a step.

        Args:
            asked: whether this process was asked to end, which a launcher does when it has lost another.

        Raises:
            PeerEnded: it was asked to, and the step did not end.
        """
        began: float | None = None
        while self.world_size > 1 and not done():
            if began is None and asked():
                began = time.monotonic()
            if began is not None and time.monotonic() - began > _GRACE_S:
                raise _peer_ended(phrase("together.hangs"))
            time.sleep(_POLL_S)

    @contextmanager
    def _failure_told(self) -> Iterator[None]:
        try:
            yield
        except AegisError as error:
            self._broadcast({"exit_code": error.exit_code})
            raise

    def _hear(self) -> Any:
        answer = self._broadcast(None)
        if "exit_code" in answer:
            raise SystemExit(answer["exit_code"])
        return answer["found"]

    def _broadcast(self, value: Any) -> Any:
        if self.world_size == 1:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        with dead_peers_explained():
            dist.broadcast(size, src=0, group=self.cpu_group)
            if not self.is_main:
                text = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(text, src=0, group=self.cpu_group)
        return json.loads(bytes(text.tolist()))


SINGLE = ProcessGroup()


def world_size() -> int:
    """How many processes the launcher started for one training; 1 without a launcher.

    Raises:
        EnvironmentFault: WORLD_SIZE is no number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    try:
        return max(1, int(text))
    except ValueError:
        raise EnvironmentFault("together.world_size", text=text) from None


def local_world_size() -> int:
    """How many of them this machine has, as the launcher says."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the other processes, if a launcher started several, while the block runs.

    All of them leave a training that diverged or was interrupted together, and process 0 alone with the message.

    Args:
        device: this process's own.

    Raises:
        EnvironmentFault: the others do not come.
        PeerEnded: one of them ended within the block.
    """
    parts = world_size()
    if parts == 1:
        yield SINGLE
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        group = ProcessGroup(dist.get_rank(), parts, dist.new_group(backend="gloo", timeout=_PATIENCE))
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault("together.not_met", world_size=parts, error=_first_line(error)) from error
    if not group.is_main:
        progress.install(progress.SilentReporter())
    complete = True
    try:
        yield group
    except (DivergedError, Interrupted) as error:
        # not before process 0 has saved: a launcher ends all when the first one leaves
        group.barrier()
        if group.is_main:
            raise
        raise SystemExit(error.exit_code) from error
    except PeerEnded:
        complete = False
        raise
    finally:
        # without one of them it would wait on a GPU for a sum that never comes, and the message with it
        if complete:
            dist.destroy_process_group()


@contextmanager
def dead_peers_explained() -> Iterator[None]:
    """Say of a collective call that fails what that means.

    Raises:
        PeerEnded: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        raise _peer_ended(_first_line(error)) from error


def _peer_ended(why: str) -> PeerEnded:
    return PeerEnded("together.peer_ended", why=why)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
