"""Tests of the progress line and the advice that are taken from the end of a log."""

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
        (
            "Prepared 75 packages\n\n$ python -m vendor_llama_cpp\n12 of 77 MB, about 9 s left\n",
            "12 of 77 MB, about 9 s left",
        ),
        ("DEBUG noise\nDownloading torch (183.0MiB)\nDEBUG noise\n", "downloading torch"),
        ("Resolved 75 packages in 2s\n   Building llama-cpp-python==0.3.36\n", "building llama-cpp-python==0.3.36"),
        ("Prepared 75 packages in 6.33s\n", "prepared 75"),
        ("DEBUG [20/80] c++ -c b.cpp\nDEBUG a warning\nDownloading torch\n", "compiling llama.cpp, 20 of 80 files"),
        pytest.param(
            "DEBUG [20/80] c++ -c b.cpp\n" + "DEBUG a warning\n" * 10_000,
            "compiling llama.cpp, 20 of 80 files",
            id="long warnings",
        ),
        ("DEBUG noise\n", ""),
    ],
)
def test_the_sign_of_life_says_how_far_the_last_program_is(tmp_path: Path, text: str, expected: str) -> None:
    log = written(tmp_path, f"\n$ uv pip install\n{text}")
    assert advice.Where()(log) == expected


def test_a_compilation_names_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured: 86 seconds were left after 38 of 83 files. Too early, no time is named."""
    now, where, output = 0.0, advice.Where(), []
    monkeypatch.setattr(advice.time, "monotonic", lambda: now)
    for now, done in ((12.0, 2), (16.0, 6), (61.0, 38), (147.0, 83)):  # noqa: B007 (the clock reads it)
        output.append(where(written(tmp_path, f"\n$ uv pip install\nDEBUG [{done}/83] c++ -c a.cpp\n")))
    assert output == [
        "compiling llama.cpp, 2 of 83 files",
        "compiling llama.cpp, 6 of 83 files",
        "compiling llama.cpp, 38 of 83 files, about 1 min 21 s left",
        "compiling llama.cpp, 83 of 83 files",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: No space left on device (os error 28)", "disk is full"),
        ("NewConnectionError: Temporary failure in name resolution", "network"),
        ("  cause: dns error", "network"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("  x No solution found when resolving dependencies:", "on top of tools/constraints.txt"),
        ("cause: torch==2.13.0 has no wheels with a matching platform tag (e.g., `win32`)", "64-bit CPython"),
        ("failed to hardlink file (os error 206)", "C:\\aegis"),
        ("CMake Error: The C++ compiler is not able to compile a simple test program.", "recent compiler"),
        ("  cause: Hash mismatch for `peft==1.0`", "constraints.txt"),
        ("invalid peer certificate: UnknownIssuer", "PIP_CERT"),
        ("something else", "Start again"),
    ],
)
def test_each_cause_has_its_fix(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in advice.cause(written(tmp_path, text))


def test_the_fix_of_a_failure_is_in_the_users_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_LANG", "ja")
    assert "ディスク" in advice.cause(written(tmp_path, "No space left on device"))
    assert advice.cause(written(tmp_path, "")).endswith("見てください。")


def test_the_last_line_is_found(tmp_path: Path) -> None:
    log = written(tmp_path, "Downloading it (77 MB)\n12 of 77 MB, about 9 s left\n")
    assert advice.last_line(log) == "12 of 77 MB, about 9 s left"
    assert advice.last_line(written(tmp_path, "")) == ""


def test_the_shown_end_of_the_output_is_short(tmp_path: Path) -> None:
    log = written(tmp_path, "".join(f"line {number}\n" for number in range(1000)))
    assert advice.tail(log).splitlines() == [f"line {number}" for number in range(980, 1000)]
