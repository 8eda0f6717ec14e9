"""Tests of manifests that are valid JSON and that no stage has written: each command refuses them, naming the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.runs.run import Run
from tests.faults.forked import Forked

Document = dict[str, Any]


def _set(part: str, **values: object) -> Callable[[Document], object]:
    return lambda document: document[part].update(values)


def _lose(part: str, name: str) -> Callable[[Document], object]:
    return lambda document: document[part].pop(name)


def _replace(**parts: object) -> Callable[[Document], object]:
    return lambda document: document.update(parts)


ANY: dict[str, Callable[[Document], object]] = {
    "no config": lambda document: document.pop("config"),
    "config is a list": _replace(config=[]),
    "config is empty": _replace(config={}),
    "inputs are a list": _replace(inputs=[]),
    "a file name of 300 characters": _replace(files={"n" * 300: {"bytes": 1, "sha256": "0" * 64}}),
}
TRAIN: dict[str, Callable[[Document], object]] = {
    "max_length is a text": _set("config", max_length="x"),
    "max_length is huge": _set("config", max_length=10**18),
    "steps are beyond 64 bits": _set("config", max_steps=10**400),
    "load_in is of no precision": _set("config", load_in="8bit"),
    "the batch is a mapping": _set("config", batch_size={}),
    "an unknown setting": _set("config", unheard_of=1),
    "the result is a list": _set("facts", result=[]),
}
MERGE: dict[str, Callable[[Document], object]] = {
    "dtype is of no torch": _set("config", dtype="float8"),
    "dtype is a list": _set("config", dtype=["float16"]),
    "base_weights are lost": _lose("config", "base_weights"),
    "the gate is a text": _set("facts", gate="much"),
}
EXPORT: dict[str, Callable[[Document], object]] = {
    "quant is lost": _lose("config", "quant"),
    "quant is a text": _set("config", quant="Q4_K_M"),
    "keep_f16 is lost": _lose("config", "keep_f16"),
    "head_quant is a list": _set("config", head_quant=["q8_0"]),
    "system is a list": _set("config", system=["you"]),
    "files name one of 300 characters": _set("facts", files={"Q4_K_M": "n" * 300}),
    "files name one outside": _set("facts", files={"Q4_K_M": "../merged/config.json"}),
}
EDITS = {"adapter": {**ANY, **TRAIN}, "merged": {**ANY, **MERGE}, "gguf": {**ANY, **EXPORT}}
CASES = [(folder, name) for folder, edits in EDITS.items() for name in edits]

READERS: dict[str, dict[str, tuple[object, ...]]] = {
    "adapter": {
        "verify": ("--tokens", 64, "--device", "cpu"),
        "merge": ("--dry-run", "--overwrite"),
        "report": ("--samples", 1, "--seconds", 0),
        "chat --live": ("--live", "-p", "?", "--max-tokens", 1),
        "list": (),
    },
    "merged": {
        "verify": ("--tokens", 64, "--device", "cpu"),
        "export-gguf": ("--dry-run", "--overwrite"),
        "report": ("--samples", 0),
        "push": ("me/tiny", "--part", "merged", "--dry-run", "--unverified"),
    },
    "gguf": {
        "verify": ("--tokens", 64, "--device", "cpu"),
        "verify --dry-run": ("--dry-run",),
        "export-gguf": ("--dry-run", "--quant", "Q8_0"),
        "report": ("--samples", 0),
        "chat": ("-p", "?", "--max-tokens", 1),
        "push": ("me/tiny", "--dry-run", "--unverified"),
    },
}
"""The commands that read a folder's manifest."""


@pytest.fixture(scope="module")
def run(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a copy of which each test edits a manifest, and puts it back."""
    return Run(shutil.copytree(finished_run.root, tmp_path_factory.mktemp("edited") / "artifacts" / "run"))


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    found = Forked()
    yield found
    found.close()


@pytest.mark.parametrize(("folder", "name"), CASES, ids=[": ".join(case) for case in CASES])
def test_an_edited_manifest_is_refused_and_never_a_bug(
    run: Run, forked: Forked, cache_of_the_run: Path, folder: str, name: str
) -> None:
    """verify finds each in the stage that wrote it, and names the file; other commands refuse it or do without it."""
    manifest = run.root / folder / "manifest.json"
    before = manifest.read_text(encoding="utf-8")
    document = json.loads(before)
    EDITS[folder][name](document)
    manifest.write_text(json.dumps(document), encoding="utf-8")
    environment = {"AEGIS_CACHE_DIR": str(cache_of_the_run), "AEGIS_LANG": "en"}
    try:
        for command, arguments in READERS[folder].items():
            named = () if command == "list" else ("--run", run.root)
            ended = forked.aegis(
                run.root.parents[1], command.partition(" ")[0], *arguments, *named, environment=environment
            )
            assert ended.code in (0, 2, 5), (command, ended.output)
            assert "Traceback" not in ended.output
            assert "bug" not in ended.output
            if command == "verify":
                assert (ended.code, f"run/{folder}" in ended.output) == (5, True), ended.output
    finally:
        manifest.write_text(before, encoding="utf-8")
