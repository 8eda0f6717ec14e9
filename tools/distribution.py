"""Build commands: what lies in site-packages, and the addresses in the metadata.

A wheel has vendor_llama_cpp inside aegis, because nothing else of ours may lie in site-packages. The project's page on
a package index has its pictures and links from the repository that the build runs in: GitHub's own variables name it,
or AEGIS_REPOSITORY (such as https://github.com/owner/name) and AEGIS_REVISION do. Without them there are none.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info
from setuptools.command.sdist import sdist

_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")
_PAGES = {
    "Homepage": "",
    "Documentation": "/blob/{revision}/README.md",
    "Changelog": "/blob/{revision}/.github/CHANGELOG.md",
    "Issues": "/issues",
}


def repository() -> tuple[str, str] | None:
    """Return the repository's address and the revision that is built; None if nothing names them."""
    known = os.environ
    address = known.get("AEGIS_REPOSITORY", "")
    if not address and known.get("GITHUB_REPOSITORY"):
        address = f"{known.get('GITHUB_SERVER_URL', 'https://github.com')}/{known['GITHUB_REPOSITORY']}"
    revision = known.get("AEGIS_REVISION") or known.get("GITHUB_SHA") or "main"
    return (address.rstrip("/"), revision) if address else None


def with_addresses(text: str, address: str, revision: str) -> str:
    """Make the relative links of a Markdown text at the root absolute, those of pictures to the files themselves."""

    def absolute(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        return f"{mark}{label}({address}/{'raw' if mark else 'blob'}/{revision}/{target})"

    return _LINK.sub(absolute, text)


class EggInfo(egg_info):
    """Writes the addresses into the metadata."""

    def finalize_options(self) -> None:
        super().finalize_options()
        found, metadata = repository(), self.distribution.metadata
        if found is None:
            return
        address, revision = found
        metadata.project_urls = {name: address + page.format(revision=revision) for name, page in _PAGES.items()}
        if metadata.long_description:
            metadata.long_description = with_addresses(metadata.long_description, address, revision)


class BuildPy(build_py):
    """Moves the package after it was copied; an editable installation finds it in the checkout."""

    def run(self) -> None:
        super().run()
        copied = Path(self.build_lib, "vendor_llama_cpp")
        if copied.is_dir() and not self.editable_mode:
            inside = Path(self.build_lib, "aegis", copied.name)
            shutil.rmtree(inside, ignore_errors=True)
            copied.rename(inside)


class Sdist(sdist):
    """Adds this file, which a wheel is built with; leaves out the few tests that setuptools adds of itself."""

    def make_distribution(self) -> None:
        self.filelist.exclude_pattern("tests/*", anchor=True)
        self.filelist.append("tools/distribution.py")
        super().make_distribution()
