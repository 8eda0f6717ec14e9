"""Write the file maps of the READMEs: a tree with one line per file, taken from the files themselves.

    python tools/file_map.py            exit 1 if a map is out of date
    python tools/file_map.py --write    bring every map up to date

A map stands between `<!-- files: FOLDER -->` and `<!-- end of files -->`. A Python file's line is the first sentence of
its module docstring, a TOML file's its first comment.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READMES = ("pipeline/aegis/README.md", "tools/README.md")
_MAP = re.compile(r"(<!-- files: (\S+) -->\n).*?(<!-- end of files -->)", re.DOTALL)
_SUFFIXES = {".py", ".toml", ".jinja", ".html", ".cmake"}
_COLUMN = 30
"""Where a line's text begins, in letters; a longer name moves its own text."""
_WIDTH = 150
"""A longer sentence is cut at a word."""


def updated(text: str, root: Path = ROOT) -> str:
    """Return a README's text with the maps in it as the files are now."""
    return _MAP.sub(lambda found: f"{found[1]}\n```\n{file_map(root / found[2], root)}\n```\n\n{found[3]}", text)


def file_map(folder: Path, root: Path = ROOT) -> str:
    """Return the tree under `folder`, files before folders, both by name.

    Caches, hidden files and packages' empty `__init__.py` are left out.
    """
    return "\n".join([f"{folder.relative_to(root).as_posix()}/", *_lines(folder, 1)])


def summary(path: Path) -> str:
    """Return what a file says of itself in one sentence; empty if it says nothing."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return _sentence(ast.get_docstring(ast.parse(text)) or "")
    comments = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    return _sentence("\n".join(comments))


def _lines(folder: Path, depth: int) -> list[str]:
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    lines = []
    for path in entries:
        if path.name.startswith((".", "__pycache__")) or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            inside = _lines(path, depth + 1)
            lines += [f"{'  ' * depth}{path.name}/", *inside] if inside else []
        elif path.suffix in _SUFFIXES and not (path.name == "__init__.py" and not summary(path)):
            lines.append(f"{'  ' * depth + path.name:<{_COLUMN}} {summary(path)}".rstrip())
    return lines


def _sentence(text: str) -> str:
    """The first sentence of a text, without its last stop."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?])\s(?=[A-Z`*])", paragraph, maxsplit=1)[0].rstrip(".:;。")
    return sentence if len(sentence) <= _WIDTH else f"{sentence[:_WIDTH].rpartition(' ')[0]} …"


def main() -> int:
    """Check the maps, or write them; 1 if one was out of date and stays so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="bring the maps up to date")
    write = parser.parse_args().write
    stale = False
    for name in READMES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = updated(before)
        if after != before:
            stale = True
            if write:
                path.write_text(after, encoding="utf-8", newline="\n")
            sys.stdout.write(f"{name}: {'written' if write else 'out of date'}\n")
    return int(stale and not write)


if __name__ == "__main__":
    sys.exit(main())
