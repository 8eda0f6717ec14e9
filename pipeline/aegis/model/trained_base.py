"""A base with the chat template that it is, or was, trained with: its own, or a file given by the user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aegis.config.presets import DEMO
from aegis.errors import UsageError
from aegis.model.base import TEMPLATE, Base, find_base
from aegis.runs import named_paths
from aegis.runs.facts import TrainFacts
from aegis.runs.manifest import MANIFEST, read_manifest

TEMPLATE_INPUT = "chat_template"
"""The name of the template's sha256 among the inputs in the manifests of train and merge."""


def with_template(base: Base, path: Path | None) -> Base:
    """Return the base with the chat template of a file; unchanged without a file.

    Raises:
        UsageError: the file cannot be read as UTF-8, or is empty.
    """
    if path is None:
        return base
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError("base.no_template", path=path, error=str(error)) from None
    if not text.strip():
        raise UsageError("base.empty_template", path=path)
    return replace(base, chat_template=text)


def with_template_of(base: Base, adapter: Path) -> Base:
    """Return the base with the chat template that AEGIS trained an adapter with.

    Raises:
        UsageError: the template's file is missing beside the adapter.
    """
    if (adapter / MANIFEST).is_file() and TEMPLATE_INPUT in read_manifest(adapter).inputs:
        return with_template(base, adapter / TEMPLATE)
    return base


def trained_base(adapter: Path) -> Base:
    """Find the base that a run's adapter was trained on.

    Raises:
        IntegrityError: there is no finished adapter.
        UsageError: the folder that it was trained on is not there any more.
        EnvironmentFault, UnsupportedModelError: as in `find_base`.
    """
    facts = TrainFacts.read(adapter)
    here = named_paths.exists(facts.base_model)
    if facts.revision is None and facts.base_model != DEMO and not here:
        raise UsageError("base.moved", base=facts.base_model, adapter=adapter)
    return with_template_of(find_base(facts.base_model, facts.revision), adapter)
