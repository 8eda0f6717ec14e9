"""From a log's end to the sign of life and to what a person can do."""

from pathlib import Path

import pytest
from startup import advice


def written(folder: Path, text: str) -> Path:
    log = folder / "setup.log"
    log.write_text(text, encoding="utf-8")
    return log


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Collecting torch<2.14\n", "collecting torch<2.14"),
        ("Building wheel for llama-cpp-python\n  [3/193] c++ -c a.cpp\n  [7/193] c++ -c b.cpp\n", "7 of 193 files"),
        ("  [193/193] linking\nInstalling collected packages: mpmath, torch\n", "installing collected packages"),
        ("", "pip is at work"),
    ],
)
def test_where_pip_is(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in advice.where_pip_is(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError: Temporary failure in name resolution", "network"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no package for Python"),
        ("ERROR: ResolutionImpossible: for help visit", "start.py lock"),
        ("something else", "Start again"),
    ],
)
def test_cause(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in advice.cause(written(tmp_path, text))


def test_the_last_line_is_a_sign_of_life(tmp_path: Path) -> None:
    log = written(tmp_path, "Downloading it with pip (77 MB)\n12 of 77 MB, about 9 s left\n")
    assert advice.last_line(log) == "12 of 77 MB, about 9 s left"
    assert advice.last_line(written(tmp_path, "")) == ""


def test_the_tail_is_short(tmp_path: Path) -> None:
    log = written(tmp_path, "".join(f"line {number}\n" for number in range(1000)))
    assert advice.tail(log).splitlines() == [f"line {number}" for number in range(980, 1000)]
