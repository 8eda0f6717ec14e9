"""Collects a model's origin for its card: `merge` records it in the manifest, and export and card read it there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.config.places import place_settings
from aegis.config.recorded import recorded_config
from aegis.config.train_settings import TrainConfig
from aegis.data.sources import names_hub_dataset, public_name
from aegis.hub.client import CARD
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.runs import named_paths
from aegis.runs.facts import MergeFacts, Provenance, TrainFacts
from aegis.runs.manifest import MANIFEST, read_manifest
from aegis.soul.file import SoulRecord

_LICENCES = ("LICENSE*", "NOTICE*")
_TEXTS = ("license", "license_name", "license_link")


def provenance_of_merge(base: Base, adapter: Path, soul: SoulRecord) -> Provenance:
    """Return the origin of a merged model; without a manifest beside the adapter, its training is unknown."""
    training = read_manifest(adapter) if (adapter / MANIFEST).is_file() else None
    data: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    finish = ""
    if training is not None:
        named = recorded_config(training, TrainConfig).dataset
        on_hub = names_hub_dataset(named)
        facts = TrainFacts.of(training)
        data = facts.data.model_dump(include={"train_rows", "heldout_rows", "content_sha256"})
        finish = "" if facts.finish is None else facts.finish.quant
        data |= {"dataset": public_name(named), "on_hub": on_hub}
        private = place_settings()
        # the base and the data have places of their own in the card
        settings = {
            name: public_name(value) if name in private and isinstance(value, str) else value
            for name, value in training.config.items()
            if name not in ("base_model", "revision", "dataset")
        }
    return Provenance(
        base=base.name if base.revision else Path(base.name).name,
        on_hub=base.revision is not None,
        revision=base.revision,
        metadata=card_metadata(base.folder, base.name if base.revision else None),
        data=data,
        settings=settings,
        soul={
            "alpha": soul.alpha,
            "gate": soul.gate,
            "rotation": soul.kind,
            "counter_scale": soul.counter_scale,
        },
        finish=finish,
    )


def provenance_of_folder(folder: Path) -> Provenance:
    """Return the origin of a model folder: what merge recorded, or for another folder its name and its own card."""
    if (merged := MergeFacts.known(folder)) is not None:
        return merged.origin
    return Provenance(base=folder.resolve().name, metadata=card_metadata(folder, None))


def card_metadata(folder: Path, hub_id: str | None) -> dict[str, Any]:
    """Read licence and language from a model folder's own card; malformed values are left out."""
    from huggingface_hub import metadata_load

    found: dict[str, Any] = {}
    path = folder / CARD
    if path.is_file():
        try:
            found = metadata_load(path) or {}
        except Exception as error:  # untrusted YAML can raise anything
            progress.warn(phrase("origin.unreadable_card", path=path, name=type(error).__name__))
    kept = {name: found[name] for name in _TEXTS if isinstance(found.get(name), str)}
    languages = found.get("language")
    if isinstance(languages, str) or (isinstance(languages, list) and all(isinstance(x, str) for x in languages)):
        kept["language"] = languages
    if not kept.get("license") and (licences := licence_files(folder)):
        first = next((line.strip() for line in _lines(licences[0]) if line.strip()), licences[0].name)
        kept |= {"license": "other", "license_name": first[:80], "license_link": licences[0].name}
    link = kept.get("license_link")
    if link and "://" not in link and hub_id and not named_paths.is_file(folder / link):
        kept["license_link"] = f"https://huggingface.co/{hub_id}/blob/main/{link}"
    return kept


def licence_files(folder: Path) -> list[Path]:
    """List the licence and notice files that must be copied with a model."""
    return sorted(path for pattern in _LICENCES for path in folder.glob(pattern) if path.is_file())


def copy_licences(source: Path, target: Path) -> None:
    """Copy the licence and notice files of a model to the folder of one that is made from it."""
    for path in licence_files(source):
        shutil.copyfile(path, target / path.name)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
