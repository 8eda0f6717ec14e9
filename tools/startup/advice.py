"""From the end of a log to how far a command is, and to what a person can do about its failure."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from startup.compiler import compiler_packages
from startup.console import clock
from startup.language import either

TAIL_LINES = 20
_MIN_SHARE, _MIN_SECONDS = 0.1, 5.0
"""The time left is shown once this share of the files is compiled and this many seconds have passed since the first."""
_LATER_FILES_ARE_SLOWER = 1.25
"""When a share s of the files is compiled, s to this power of the time has passed (measured on two cores; ± 0.04)."""
_END_BYTES = 512 * 1024  # a compiler's warnings about one file take more than 128 kB

_COMPILED = re.compile(r"^(?:DEBUG)?\s*\[\s*(\d+)/(\d+)\]", re.MULTILINE)
_UV_AT = re.compile(r"^\s*(Resolved|Downloading|Downloaded|Building|Built|Prepared|Installed)\b (\S+)", re.MULTILINE)
_NOISE = re.compile(r"^(DEBUG|TRACE) ")

# The first that matches is shown, so the specific ones stand first.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"No space left on device|not enough space on the disk",
        "The disk is full: free some space and start again.",
        "ディスクの空きがありません。空きを作って、もう一度始めてください。",
    ),
    (
        r"Killed signal|out of memory|cannot allocate memory|MemoryError|C1060",
        "Memory ran out: close other programs, set CMAKE_BUILD_PARALLEL_LEVEL=1, and start again.",
        "メモリが足りません。他のプログラムを閉じ、CMAKE_BUILD_PARALLEL_LEVEL=1 を設定して、もう一度始めてください。",
    ),
    (
        r"Hash mismatch|DO NOT MATCH THE HASHES",
        "The index offers another file than the one whose hash tools/constraints.txt holds: check which index it is.",
        "インデックスのファイルが tools/constraints.txt のハッシュと一致しません。どのインデックスか確認してください。",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate|UnknownIssuer",
        "A certificate was not accepted (a company proxy?): set PIP_CERT to its certificate file.",
        "証明書が受け付けられませんでした（社内プロキシ?）。PIP_CERT に証明書ファイルを指定してください。",
    ),
    (
        r"Name or service not known|name resolution|getaddrinfo failed|Network is unreachable|dns error"
        r"|NewConnectionError|ReadTimeout|Read timed out|ConnectionReset|ProxyError|Connection refused"
        r"|error sending request|operation timed out|tcp connect error",
        "The network or the package index did not answer: check the connection or pip's proxy settings (uv gets them).",
        "ネットワークまたはパッケージインデックスが応答しません。接続か pip のプロキシ設定（uv にも渡します）を"
        "確認してください。",
    ),
    (
        r"Permission denied|Access is denied|WinError (5|32)\b|os error (5|13|32)\b",
        "A file could not be written: close programs that use .venv (editors, terminals).",
        "ファイルに書き込めません。.venv を使っているプログラム（エディタ、端末）を閉じてください。",
    ),
    (
        r"os error (3|206)\b",
        "The folder's path is too long for Windows: move the clone to a short one such as C:\\aegis, or turn on long "
        "paths (LongPathsEnabled).",
        "フォルダのパスが Windows には長すぎます。C:\\aegis のような短いパスへ移すか、長いパスを有効にしてください"
        "（LongPathsEnabled）。",
    ),
    (
        r"CMake Error|CMAKE_C(XX)?_COMPILER|ninja: build stopped|Failed to build `?llama",
        "llama-cpp-python did not compile; the log has the first error. A working, recent compiler comes with:\n"
        "{compiler}",
        "llama-cpp-python のコンパイルに失敗しました。最初のエラーはログにあります。新しいコンパイラは次のコマンドで"
        "入ります:\n{compiler}",
    ),
    (
        r"has no wheels with a matching|No solution found|no version of",
        "No package fits Python {python} on this machine; try a 64-bit CPython 3.11 to 3.14 on one of the platforms "
        "that uv names. If pyproject.toml was edited: run the command on top of tools/constraints.txt.",
        "このマシンの Python {python} に合うパッケージがありません。uv が挙げる環境で、64-bit 版の CPython 3.11 から "
        "3.14 を試してください。pyproject.toml を編集した場合は tools/constraints.txt の先頭にある"
        "コマンドを実行します。",
    ),
)


def _read_end(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _END_BYTES))
        return stream.read().decode("utf-8", "replace")


def _lines(text: str) -> list[str]:
    """The lines that are not uv's own notes."""
    return [line for line in text.splitlines() if not _NOISE.match(line)]


def tail(log: Path) -> str:
    """The last 20 lines of the log that are not uv's own notes."""
    return "\n".join(_lines(_read_end(log))[-TAIL_LINES:])


def last_line(log: Path) -> str:
    """What the log says last."""
    return tail(log).rpartition("\n")[2].strip()


def error(log: Path) -> str:
    """Why uv failed, in one line of its own."""
    found: list[str] = re.findall(r"^\s*(?:error|cause): (.*)", tail(log), re.MULTILINE)
    return found[-1] if found else last_line(log)


def cause(log: Path) -> str:
    """What to do about the failure the log ends with, or a general way on."""
    text = tail(log)
    for pattern, *advice in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            return either(*advice).format(compiler=compiler_packages(), python=version)
    return either(
        "Start again: what is done is kept. If it fails the same way, the complete log has more.",
        "もう一度始めてください。終わった分は残っています。同じところで失敗する場合は、ログ全体を見てください。",
    )


class Where:
    """How far one running program is: the files that are compiled, uv's step, or the last line of its output."""

    _began: float | None = None

    def __call__(self, log: Path) -> str:
        """One phrase for the sign of life, from the log's end."""
        text = _read_end(log).rpartition("\n$ ")[2].partition("\n")[2]  # without the command itself
        compiled, steps = _COMPILED.findall(text), _UV_AT.findall(text)
        if compiled:
            return self._compiling(int(compiled[-1][0]), int(compiled[-1][1]))
        return f"{steps[-1][0].lower()} {steps[-1][1]}" if steps else "".join(_lines(text)[-1:]).strip()

    def _compiling(self, done: int, total: int) -> str:
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        text = either(
            f"compiling llama.cpp, {done} of {total} files", f"llama.cpp をコンパイル中、{total} 個中 {done} 個"
        )
        if not _MIN_SHARE <= done / total < 1 or now - self._began < _MIN_SECONDS:
            return text
        share = (done / total) ** _LATER_FILES_ARE_SLOWER
        left = clock((now - self._began) * (1 / share - 1))
        return text + either(f", about {left} left", f"、残り約 {left}")
