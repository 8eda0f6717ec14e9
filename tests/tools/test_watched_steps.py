"""Tests that the memory meter counts a child's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from watched_steps import Record


@pytest.mark.parametrize("megabytes", [0, 300])
def test_the_meter_counts_a_childs_memory(tmp_path: Path, megabytes: int) -> None:
    """Its peak, though it is gone at the end; the control is a child that takes none."""
    record = Record(tmp_path)
    code = f"import time; held = b'x' * ({megabytes} << 20); time.sleep(1.5); del held; time.sleep(1)"
    child = subprocess.Popen([sys.executable, "-c", code])
    with record.step("child", child.pid):
        assert child.wait() == 0
    [row] = record.rows
    assert (row.rss_bytes > 300 << 20) == (megabytes == 300)
    assert row.seconds >= 1
