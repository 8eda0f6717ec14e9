"""The study's texts: Japanese prose and English quotations to learn, English definitions as the other text.

    PYTHONPATH=pipeline:.:tools python -m study.texts PROSE.jsonl FOLDER

writes ja.jsonl, en.jsonl and other.jsonl into FOLDER. PROSE.jsonl has one work per row under "text": those of Niimi
Nankichi (1913-1943) from github.com/aozorahack/aozorabunko_text, cut here at line ends. The English is that of Debian's
package `fortunes`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

_FORTUNES = Path("/usr/share/games/fortunes")
_QUOTATIONS = ("computers", "cookie", "humorists", "literature", "men-women", "miscellaneous", "people", "politics")
_QUOTATIONS += ("science", "wisdom", "work")
_CHARACTERS = 800
"""The most characters in a piece of prose: about one window."""


def _pieces(works: Iterable[str]) -> Iterator[str]:
    for work in works:
        piece = ""
        for line in work.splitlines(keepends=True):
            if piece and len(piece) + len(line) > _CHARACTERS:
                yield piece
                piece = ""
            piece += line
        yield piece


def _fortunes(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        yield from (_FORTUNES / file).read_text(encoding="utf-8").split("\n%\n")


def write(prose: Path, folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    works = [json.loads(line)["text"] for line in prose.read_text(encoding="utf-8").splitlines()]
    texts = {"ja": _pieces(works), "en": _fortunes(_QUOTATIONS), "other": _fortunes(["definitions"])}
    for name, found in texts.items():
        rows = [json.dumps({"text": text.strip("\n")}, ensure_ascii=False) for text in found if text.strip()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prose", type=Path, metavar="PROSE.jsonl")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    write(given.prose, given.folder)
