"""Build commands: a wheel has vendor_llama_cpp inside aegis, because nothing else of ours may lie in site-packages."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


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
