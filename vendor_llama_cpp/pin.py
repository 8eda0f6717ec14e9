"""Which bytes are trusted: pin.toml, and the digest that names a whole tree of files."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True)
class Pin:
    """pin.toml, field by field."""

    distribution: str
    version: str
    sdist: str
    sha256: str
    size_bytes: int
    upstream: str
    upstream_commit: str
    licence: str
    root: str
    files: tuple[str, ...]
    tree_sha256: str

    def wanted(self, member: str) -> str | None:
        """The path inside the tree of an archive member, or None for one that is left in the archive."""
        path = member.removeprefix(self.root)
        if path == member:
            return None
        # fnmatch's "*" crosses "/", so the number of parts has to agree too
        parts = path.count("/")
        for pattern in self.files:
            if pattern.count("/") == parts and fnmatchcase(path, pattern):
                return path
        return None


def load_pin() -> Pin:
    """The release this checkout is pinned to."""
    raw = tomllib.loads(Path(__file__).with_name("pin.toml").read_text(encoding="utf-8"))
    del raw["wheels"]  # for tools/start.py
    return Pin(**{**raw, "files": tuple(raw["files"])})


def digest(file_sha256: Mapping[str, str]) -> str:
    """One sha256 for a tree, given each file's path (with "/") and sha256: what `sha256sum` would print,
    sorted by path, hashed. It changes when a file changes, goes, or comes."""
    lines = "".join(f"{file_sha256[path]}  {path}\n" for path in sorted(file_sha256))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()
