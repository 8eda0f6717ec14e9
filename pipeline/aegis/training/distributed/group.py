"""One training in several processes: their group, the all-reduce of gradients, broadcasts, and how the processes end.

torchrun or accelerate starts the processes and sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR. Each process takes
its share of every step's windows; gradients are summed, so all processes make the same update. Process 0 writes files
and prints. It broadcasts what it decides: the checkpoint to resume from, or that something is wrong.
"""

from __future__ import annotations

import json
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
from aegis.errors import AegisError, DivergedError, EnvironmentFault, Interrupted, PeerEnded, first_line
from aegis.messages import phrase
from aegis.training.distributed.launcher import world_size

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""The longest wait of a step for the other processes, which may be loading the base or saving; then they count as dead.
"""
_PATIENCE = timedelta(days=2)
"""The longest wait for process 0 before training: it may be downloading the base, or hashing a large data set."""
_GRACE_S = 20.0
"""Seconds from a launcher's SIGTERM until a step that does not end is given up; torchrun kills after 30."""
_POLL_S = 2e-4


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: this process's number, from 0.
        world_size: number of processes.
        cpu_group: torch's process group for tensors in host memory; None if there is one process.
    """

    rank: int = 0
    world_size: int = 1
    cpu_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor` with its sum over all processes.

        Raises:
            PeerEnded: another process has ended.
        """
        if self.world_size > 1:
            with dead_peers_explained():
                dist.all_reduce(tensor)

    def broadcast(self, find: Callable[[], T]) -> T:
        """Call `find` in process 0 only and return its result, a JSON value, in all processes.

        Raises:
            AegisError: in process 0, what `find` raised.
            SystemExit: then in the other processes, with the same exit code; process 0 prints the reason.
            PeerEnded: another process has ended.
        """
        if not self.is_main:
            return self._receive()
        with self._sharing_failure():
            found = find()
        self._broadcast({"found": found})
        return found

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Replace `tensor`, in host memory, with that of process 0.

        Raises:
            PeerEnded: another process has ended.
        """
        with dead_peers_explained():
            dist.broadcast(tensor, src=0, group=self.cpu_group)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in process 0 first, then in the others.

        Raises:
            SystemExit, PeerEnded: as in `broadcast`.
        """
        if not self.is_main:
            self._receive()
            yield
            return
        with self._sharing_failure():
            yield
        self._broadcast({"found": None})

    def barrier(self) -> None:
        """Wait until every process has reached this call.

        Raises:
            PeerEnded: another process has ended.
        """
        if self.world_size > 1:
            with dead_peers_explained():
                dist.barrier(self.cpu_group)

    def wait(self, done: Callable[[], bool], stop_requested: Callable[[], bool]) -> None:
        """Wait until the device has `done` the step; it never does if another process died in the middle of the step.

        Args:
            stop_requested: whether this process was asked to end. A launcher asks when it has lost another process.

        Raises:
            PeerEnded: the process was asked to end, and the step did not end.
        """
        stop_began: float | None = None
        while self.world_size > 1 and not done():
            if stop_began is None and stop_requested():
                stop_began = time.monotonic()
            if stop_began is not None and time.monotonic() - stop_began > _GRACE_S:
                raise _peer_ended(phrase("distributed.hangs"))
            time.sleep(_POLL_S)

    @contextmanager
    def _sharing_failure(self) -> Iterator[None]:
        try:
            yield
        except AegisError as error:
            self._broadcast({"exit_code": error.exit_code})
            raise

    def _receive(self) -> Any:
        received = self._broadcast(None)
        if "exit_code" in received:
            raise SystemExit(received["exit_code"])
        return received["found"]

    def _broadcast(self, value: Any) -> Any:
        if self.world_size == 1:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        self.broadcast_tensor(size)
        if not self.is_main:
            text = torch.empty(int(size), dtype=torch.uint8)
        self.broadcast_tensor(text)
        return json.loads(bytes(text.tolist()))


SINGLE = ProcessGroup()


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the other processes, if a launcher started several, while the block runs.

    All processes leave a diverged or interrupted training together, and process 0 alone reports it.

    Args:
        device: this process's own device.

    Raises:
        EnvironmentFault: the other processes do not connect.
        PeerEnded: another process ended within the block.
    """
    size = world_size()
    if size == 1:
        yield SINGLE
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        group = ProcessGroup(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=_PATIENCE))
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault("distributed.not_met", world_size=size, error=first_line(error)) from error
    if not group.is_main:
        progress.install(progress.SilentReporter())
    all_alive = True
    try:
        with _leaving_together(group):
            yield group
    except PeerEnded:
        all_alive = False
        raise
    finally:
        # with a process missing, this waits on a GPU for a sum that never arrives, and the message is never printed
        if all_alive:
            dist.destroy_process_group()


@contextmanager
def _leaving_together(group: ProcessGroup) -> Iterator[None]:
    """Let all processes wait for each other after a diverged or interrupted block; then process 0 alone reports it.

    Raises:
        PeerEnded: another process has ended instead.
    """
    try:
        yield
    except (DivergedError, Interrupted) as error:
        # process 0 saves first: the launcher ends all processes when the first one leaves
        group.barrier()
        if group.is_main:
            raise
        raise SystemExit(error.exit_code) from error


@contextmanager
def dead_peers_explained() -> Iterator[None]:
    """Explain a collective call that fails.

    Raises:
        PeerEnded: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        raise _peer_ended(first_line(error)) from error


def _peer_ended(why: str) -> PeerEnded:
    return PeerEnded("distributed.peer_ended", why=why)
