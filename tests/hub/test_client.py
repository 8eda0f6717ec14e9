"""Tests that a download by the Hub's client advances one progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aegis import progress
from aegis.hub import client


class Told(progress.SilentReporter):
    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[progress.Task]:
        bar = progress.SilentTask()
        bar.advance = lambda amount=1: self.calls.append(("advance", amount))  # type: ignore[method-assign]
        bar.grow = lambda amount: self.calls.append(("grow", amount))  # type: ignore[method-assign]
        self.calls.append((f"{title} {unit}", total or 0))
        yield bar
        self.calls.append(("end", 0))


def test_written_bytes_advance_one_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of the network, nor the count of files; totals grow as files begin; nothing is printed by the class."""
    reporter = Told()
    monkeypatch.setattr(progress, "_reporter", reporter)
    with client.download_bars("downloading x") as bar:
        network = bar(desc="Downloading bytes", total=0, initial=0, unit="B", unit_scale=True)
        written = bar(desc="Reconstructing", total=0, initial=0, unit="B", unit_scale=True)
        with bar(desc="Fetching 2 files", total=2) as files:
            for size in (100, 50):
                for one in (network, written):
                    one.total = (one.total or 0) + size
                    one.refresh()
                network.update(size)
                written.update(size)
                files.update()
        written.set_description("done")
    assert reporter.calls == [
        ("downloading x B", 100),
        ("advance", 100),
        ("grow", 50),
        ("advance", 50),
        ("end", 0),
    ]
    assert capsys.readouterr() == ("", "")


def test_without_a_download_there_is_no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Told()
    monkeypatch.setattr(progress, "_reporter", reporter)
    with client.download_bars("downloading x") as bar:
        bar(total=0, unit="B").close()
        assert list(bar([1, 2])) == [1, 2]
    assert reporter.calls == []
