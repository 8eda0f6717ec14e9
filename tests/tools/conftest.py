import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))  # as `python tools/start.py` has it


@pytest.fixture
def tools() -> Path:
    return TOOLS
