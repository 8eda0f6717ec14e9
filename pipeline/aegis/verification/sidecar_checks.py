"""Checks the files beside weights and GGUF files: makes them again and compares; no other file may be there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aegis import __version__
from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig, MergeConfig
from aegis.errors import IntegrityError
from aegis.hub.client import CARD
from aegis.limits import TOKENIZER_BYTES, read_json
from aegis.llama_cpp.ollama.modelfile import Defaults
from aegis.merging.merged_weights import MergePlan
from aegis.messages import bilingual
from aegis.model.base import read_config
from aegis.model.context import context_tokens
from aegis.model.shard_writer import write_index
from aegis.model.shards import INDEX
from aegis.model.sidecars import write_sidecars
from aegis.report.card import CardFile, merged_card
from aegis.runs.facts import ExportFacts, MergeFacts, Provenance, result_name
from aegis.runs.manifest import MANIFEST, Manifest
from aegis.verification.export_sidecars import write_export_sidecars
from aegis.verification.run_checks import Checks


def check_merged_sidecars(
    checks: Checks, plan: MergePlan, origin: Provenance, merged: Path, manifest: Manifest
) -> None:
    """Check config.json, tokenizer, generation_config, index, licences and card of the merged folder.

    Args:
        origin: the origin computed from base, adapter and soul.
    """
    with (
        checks.check(bilingual("sidecars.merged"), "merge") as detail,
        TemporaryDirectory(prefix="aegis-beside-") as work,
    ):
        derived = Path(work)
        write_sidecars(plan.base, derived, recorded_config(manifest, MergeConfig).dtype)
        shards = [file.name for file in plan.base.shards.files]
        if (plan.base.folder / INDEX).is_file():
            weight_map = {name: file.name for file in plan.base.shards.files for name, _ in plan.outputs(file)}
            write_index(derived, weight_map, plan.out_bytes)
        if MergeFacts.of(manifest).origin != origin:
            raise IntegrityError("sidecars.origin", folder=merged)
        card = merged_card(origin, result_name(origin.base), _card_files(manifest, shards), __version__)
        (derived / CARD).write_text(card, encoding="utf-8", newline="\n")
        _compare(derived, merged, shards, manifest)
        detail(bilingual("sidecars.same", count=len(list(derived.iterdir()))))


def check_export_sidecars(checks: Checks, merged: Path, gguf: Path, manifest: Manifest) -> None:
    """Check Modelfile, card and licences beside the GGUF files."""
    with (
        checks.check(bilingual("sidecars.gguf"), "convert") as detail,
        TemporaryDirectory(prefix="aegis-beside-") as work,
    ):
        derived = Path(work)
        facts = ExportFacts.of(manifest)
        files = list(facts.files.values())
        if facts.context_tokens != context_tokens(read_config(merged)):
            raise IntegrityError("sidecars.context", folder=gguf, found=facts.context_tokens)
        known = _card_files(manifest, files)
        config = recorded_config(manifest, ExportConfig)
        defaults = Defaults(config.system, config.temperature)
        write_export_sidecars(merged, derived, facts.name, known, __version__, defaults=defaults, remarks=False)
        _compare(derived, gguf, files, manifest)
        detail(bilingual("sidecars.same", count=len(list(derived.iterdir()))))


def _card_files(manifest: Manifest, names: Sequence[str]) -> list[CardFile]:
    if lost := [name for name in names if name not in manifest.files]:
        raise IntegrityError("sidecars.unlisted", name=lost[0])
    return [CardFile(name, manifest.files[name].bytes, manifest.files[name].sha256) for name in names]


def _compare(derived: Path, folder: Path, weights: Sequence[str], manifest: Manifest) -> None:
    wanted = {path.name for path in derived.iterdir()}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if odd := sorted(found - wanted - {*weights, MANIFEST}):
        raise IntegrityError("sidecars.extra", path=folder / odd[0])
    # another version of this program may have worded its card differently
    unlike = {CARD} if manifest.versions.get("aegis") != __version__ else set()
    for name in sorted(wanted - unlike):
        path = folder / name
        if not path.is_file():
            raise IntegrityError("sidecars.lost", path=path)
        if path.read_bytes() != (derived / name).read_bytes():
            raise IntegrityError("sidecars.differs", path=path, what=_first_difference(derived / name, path))


def _first_difference(derived: Path, found: Path) -> str:
    """Return the first keys of a JSON object, or the first line of a text, that differ."""
    if found.suffix == ".json":
        try:
            before, after = (read_json(path, TOKENIZER_BYTES) for path in (derived, found))
            return ", ".join(_other_keys(before, after)[:5])
        except (ValueError, AttributeError):
            return ""
    one, two = (path.read_bytes().decode("utf-8", errors="replace").splitlines() for path in (derived, found))
    return next((line for line, wanted in zip([*two, ""], [*one, ""], strict=False) if line != wanted), "")[:80]


def _other_keys(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    missing = object()
    return sorted(key for key in before.keys() | after.keys() if before.get(key, missing) != after.get(key, missing))
