"""Verify untouched runs on many texts and lengths: none may fail.

    python -m tools.sweep_false_alarms RUN [RUN ...] [--tokens 64,256,1024,4096] [--llama-cpp-dir TREE]

The runs must have kept their f16 file. Bytes do not depend on the text: they are compared once per run, the models'
outputs on every text. Prints a line per verification, with how much of each bound was used, and exits with 1 if one
failed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from aegis.config.settings import VerifyConfig
from aegis.demo.corpus import documents
from aegis.runs.run import Run
from aegis.stages.verify import verify
from aegis.verification.structure import Structure
from aegis.verification.verdict import Verdict

_CODE = "def area(width, height):\n    if width < 0:\n        raise ValueError(width)\n    return width * height\n\n"
_LIST = "".join(f"- item {number}: {number * 37 % 101} pieces\n" for number in range(40))
TEXTS: dict[str, str] = {
    "one character": "a" * 400,
    "one full-width character": "あ" * 400,
    "spaces and letters": "a b c d e f g " * 60,
    "code": _CODE * 12,
    "list": _LIST,
    "numbers": " ".join(str(number * number) for number in range(300)),
    "json": '{"name": "x", "values": [1, 2, 3], "nested": {"a": null}}\n' * 30,
    "table": "| a | b |\n| --- | --- |\n" + "| 1 | 2 |\n" * 80,
    "capitals": "THIS IS A SENTENCE IN CAPITALS. " * 40,
    "punctuation": "!?.,;:()[]{}<>-_=+*/\\|@#$%^&~ " * 40,
    "english": "The river is wide and slow, and boats go down to the sea. People fish from the bank. " * 15,
    "french": "La rivière est large et lente, et les bateaux descendent vers la mer. " * 20,
    "russian": "Река широкая и медленная, и лодки идут вниз к морю. " * 20,
    "chinese": "河流宽而缓慢，船只顺流而下驶向大海。" * 30,
    "korean": "강은 넓고 느리며 배들은 바다로 내려간다. " * 25,
    "emoji": "😀🎉🦉🍎🚲 " * 60,
    "urls": "https://example.org/a/b?c=1&d=2 " * 40,
    "short lines": "yes\nno\nmaybe\n" * 80,
    "japanese": "\n\n".join(itertools.islice((text for text in documents(0, 40, "held_out")), 30)),
    "mixed": "今日は sunny で、気温は 21°C。def f(): return 1 — 「はい」と言った。" * 30,
}


def cases(tokens: tuple[int, ...], folder: Path) -> Iterator[tuple[str, int, Path]]:
    """(name, tokens, file) of every text and length; a text shorter than the length is repeated."""
    for (name, text), count in itertools.product(TEXTS.items(), tokens):
        path = folder / f"{name}-{count}.txt"
        repeated = "\n\n".join(itertools.repeat(text, max(1, 6 * count // len(text))))
        path.write_text(repeated, encoding="utf-8")
        yield name, count, path


def used(verdict: Verdict) -> str:
    """The largest share of a bound that any comparison used."""
    shares = [
        getattr(step.found, name) / bound
        for step in verdict.steps
        for name in ("mean_kl", "p99_kl", "max_kl", "flip_lead")
        if (bound := getattr(step.bounds, name)) is not None
    ]
    return f"{max(shares, default=0):.1%}"


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tokens", default="64,256,1024,4096", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--llama-cpp-dir", type=Path)
    given = parser.parse_args(arguments)
    total = failed = 0
    in_order = Structure._in_order
    for root in given.runs:
        Structure._in_order = in_order  # type: ignore[method-assign]
        with TemporaryDirectory() as scratch:
            for name, count, path in cases(given.tokens, Path(scratch)):
                config = VerifyConfig(text=path, tokens=count, llama_cpp_dir=given.llama_cpp_dir)
                verdict = verify(Run(root), config)
                # the bytes are the same for every text
                Structure._in_order = lambda *_: None  # type: ignore[assignment, method-assign]
                total, failed = total + 1, failed + (verdict.failed_stage is not None)
                sys.stdout.write(f"{root}: {name}, {verdict.tokens} tokens: {used(verdict)} of a bound")
                sys.stdout.write("".join(f"\n    FAILED {failure}" for failure in verdict.failures) + "\n")
                sys.stdout.flush()
    sys.stdout.write(f"{failed} of {total} untouched verifications failed\n")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
