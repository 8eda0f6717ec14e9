"""Tests of items in threads: all of them, in order, in bounded memory, and with the first error raised."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import closing

import pytest
import torch

from aegis.merging.ordered_pool import Scratch, run_in_order


def workers() -> int:
    return sum(thread.name.startswith("work") for thread in threading.enumerate())


def test_each_step_sees_every_item_in_order() -> None:
    """… though the first one, in several threads, takes longest for every third."""
    first: list[int] = []
    second: list[int] = []

    def work(item: int, scratch: Scratch) -> None:
        time.sleep(0.002 if item % 3 == 0 else 0)
        scratch.tensor("value", (1,), torch.int64)[0] = item

    def check(item: int, scratch: Scratch) -> None:
        assert scratch.tensor("value", (1,), torch.int64).item() == item

    done = list(
        run_in_order(range(200), work, check, lambda item, _: first.append(item), lambda item, _: second.append(item))
    )
    assert done == first == second == list(range(200))


def test_one_thread_takes_an_item_through_all_steps() -> None:
    """So the item stays in the cache of one core."""
    threads: dict[int, set[int]] = {item: set() for item in range(200)}
    both = threading.Barrier(2, timeout=30)

    def note(item: int, _slab: Scratch) -> None:
        threads[item].add(threading.get_ident())

    def work(item: int, scratch: Scratch) -> None:
        note(item, scratch)
        if item < 2:
            both.wait()  # or one thread could be done with all of them before another begins

    assert len(list(run_in_order(range(200), work, note, note))) == 200
    assert {len(seen) for seen in threads.values()} == {1}
    assert len(set.union(*threads.values())) > 1


def test_no_item_passes_one_that_failed() -> None:
    """In an ordered step, later items do not pass it, though they had no error."""
    written: list[int] = []

    def fail_at_50(item: int, _slab: Scratch) -> None:
        if item == 50:
            time.sleep(0.02)
            raise ValueError("item 50")

    with pytest.raises(ValueError, match="item 50"):
        list(run_in_order(range(100), fail_at_50, lambda item, _: written.append(item)))
    assert written == list(range(50))


def test_no_item_waits_for_one_that_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error items are cancelled one by one, and a thread may still take one that follows a cancelled one."""
    cancel = Future.cancel

    def slow_cancel(self: Future[None]) -> bool:
        done = cancel(self)
        time.sleep(0.0005)
        return done

    monkeypatch.setattr(Future, "cancel", slow_cancel)
    found: list[BaseException] = []

    def fail_at_50(item: int, _slab: Scratch) -> None:
        if item == 50:
            time.sleep(0.02)  # the others wait for it meanwhile
            raise ValueError("item 50")

    def run() -> None:
        for _ in range(20):
            try:
                list(run_in_order(range(100), fail_at_50, lambda *_: None))
            except ValueError as error:
                found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert len(found) == 20


def test_scratch_memory_is_reused() -> None:
    """A thousand items live in a few slabs, and no slab is lent to two at once."""
    slabs: set[int] = set()
    busy: set[int] = set()
    lock = threading.Lock()

    def work(_item: int, scratch: Scratch) -> None:
        with lock:
            assert id(scratch) not in busy
            busy.add(id(scratch))
            slabs.add(scratch.tensor("rows", (64,), torch.float32).data_ptr())

    def release(_item: int, scratch: Scratch) -> None:
        with lock:
            busy.remove(id(scratch))

    assert len(list(run_in_order(range(1000), work, release))) == 1000
    assert len(slabs) < 20


def test_scratch_memory_grows_and_separates_its_uses() -> None:
    scratch = Scratch()
    small = scratch.tensor("a", (2,), torch.float32).fill_(1)
    other = scratch.tensor("b", (2,), torch.float32).fill_(2)
    assert scratch.tensor("a", (2,), torch.float32).data_ptr() == small.data_ptr() != other.data_ptr()
    assert scratch.tensor("a", (3, 5), torch.float64).shape == (3, 5)
    assert other.tolist() == [2, 2]


@pytest.mark.parametrize("where", ["work", "then", "items"])
def test_the_first_error_is_raised_and_the_threads_end(where: str) -> None:
    """From any step; no later item finishes."""
    assert workers() == 0
    written: list[int] = []

    def fail_at_50(item: int, _slab: Scratch) -> None:
        if item >= 50:
            raise ValueError(f"item {item}")

    def nothing(_item: int, _slab: Scratch) -> None:
        pass

    def items() -> object:
        yield from range(50)
        if where == "items":
            raise ValueError("item 50")
        yield from range(50, 100)

    work = fail_at_50 if where == "work" else nothing
    then = fail_at_50 if where == "then" else nothing
    with pytest.raises(ValueError, match="item 50"):
        list(run_in_order(items(), work, then, lambda item, _: written.append(item)))  # type: ignore[arg-type]
    assert written == list(range(50))[: len(written)]
    assert workers() == 0


def test_stopping_early_ends_the_threads() -> None:
    assert workers() == 0
    with closing(run_in_order(range(10_000), lambda *_: None)) as items:
        assert next(items) == 0
    assert workers() == 0


def test_torch_keeps_its_number_of_threads() -> None:
    """A worker computes with one thread; the caller's number does not change."""
    seen = []
    given = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(run_in_order(range(4), lambda *_: seen.append(torch.get_num_threads())))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(given)
