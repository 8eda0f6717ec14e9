"""init: writes an aegis.toml with every setting and its description; defaults are commented out."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from aegis.config.presets import DEMO
from aegis.config.settings import SECTIONS
from aegis.config.toml_values import as_toml
from aegis.data.sources import is_hub_dataset, open_source
from aegis.errors import UsageError, reason
from aegis.messages import phrase, translate_help
from aegis.messages.layout import wrap
from aegis.model.base_name import is_on_hub, refuse_no_base

Preset = Mapping[str, Mapping[str, Any]]
"""Settings by section."""
_WIDTH = 118


def render(base_model: str, dataset: str, name: str = "aegis.toml", preset: Preset | None = None) -> str:
    """Return the file's text, with comments in the reader's language.

    `resolve` reads base, data, the preset's settings and the defaults from it.
    """
    chosen = {section: dict(settings) for section, settings in (preset or {}).items()}
    chosen["train"] = {**chosen.get("train", {}), "base_model": base_model, "dataset": dataset}
    parts = [_comment(phrase("template.header", name=name)) + "\n"]
    for section, model in SECTIONS.items():
        parts.append(f"[{section}]  # {model.__doc__.strip() if model.__doc__ else ''}\n")
        for key, field in model.model_fields.items():
            parts.append(_setting(key, field, chosen.get(section, {}).get(key)))
    return "\n".join(parts)


def _setting(key: str, field: FieldInfo, chosen: object) -> str:
    words = translate_help(field.description or "")
    if choices := _choices(field.annotation):
        words += phrase("template.choices", names=", ".join(choices))
    comment = _comment(words)
    if chosen is not None:
        return f"{comment}\n{key} = {as_toml(chosen)}\n"
    default = field.default
    if default in (None, ()):
        return f"{comment}\n# {key} =\n"
    return f"{comment}\n# {key} = {as_toml(default)}\n"


def _comment(words: str) -> str:
    return "\n".join(f"# {line}" for line in wrap("", words, _WIDTH - 2).splitlines())


def _choices(annotation: Any) -> tuple[str, ...]:
    return tuple(map(str, get_args(annotation))) if str(get_origin(annotation)) == "typing.Literal" else ()


def check(base_model: str, dataset: str) -> list[str]:
    """Check without network whether base and data exist.

    Returns:
        Remarks on what could not be checked.

    Raises:
        UsageError: a named folder or file does not exist or cannot be used.
    """
    remarks = []
    refuse_no_base(base_model)
    if base_model != DEMO and is_on_hub(base_model):
        remarks.append(phrase("template.hub_base", base_model=base_model))
    if dataset != DEMO:
        if is_hub_dataset(dataset):
            remarks.append(phrase("template.hub_data", dataset=dataset))
        else:
            open_source(dataset)
    return remarks


def write(out: Path, base_model: str, dataset: str, preset: Preset | None = None) -> None:
    """Write the file atomically.

    Raises:
        UsageError: it cannot be written.
    """
    if out.is_dir() or not out.name:
        raise UsageError("template.not_written", out=out, error=os.strerror(errno.EISDIR))
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(render(base_model, dataset, out.name, preset), encoding="utf-8", newline="\n")
        part.replace(out)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UsageError("template.not_written", out=out, error=reason(error)) from None
