"""aegis.toml for a person to fill in: every setting with its description, the defaults commented out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from aegis.config.presets import DEMO
from aegis.config.settings import SECTIONS
from aegis.data.sources import is_hub_dataset, open_source
from aegis.errors import UsageError
from aegis.messages import phrase, translate_help
from aegis.messages.layout import wrap
from aegis.model.given import is_on_hub, refuse_no_base

_WIDTH = 118


def render(base_model: str, dataset: str, name: str = "aegis.toml") -> str:
    """The file's text, its comments for the reader; `resolve` reads back base and data, and else the defaults."""
    chosen = {"train": {"base_model": base_model, "dataset": dataset}}
    parts = [_comment(phrase("template.header", name=name)) + "\n"]
    for section, model in SECTIONS.items():
        parts.append(f"[{section}]  # {model.__doc__.strip() if model.__doc__ else ''}\n")
        for key, field in model.model_fields.items():
            parts.append(_setting(key, field, chosen.get(section, {}).get(key)))
    return "\n".join(parts)


def _setting(key: str, field: FieldInfo, chosen: str | None) -> str:
    words = translate_help(field.description or "")
    if choices := _choices(field.annotation):
        words += phrase("template.choices", names=", ".join(choices))
    comment = _comment(words)
    if chosen is not None:
        return f"{comment}\n{key} = {_toml(chosen)}\n"
    default = field.default
    if default in (None, ()):
        return f"{comment}\n# {key} =\n"
    return f"{comment}\n# {key} = {_toml(default)}\n"


def _comment(words: str) -> str:
    return "\n".join(f"# {line}" for line in wrap("", words, _WIDTH - 2).splitlines())


def _choices(annotation: Any) -> tuple[str, ...]:
    return tuple(map(str, get_args(annotation))) if str(get_origin(annotation)) == "typing.Literal" else ()


def _toml(value: object) -> str:
    """A value as TOML writes it; strings with what TOML has to have escaped."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | os.PathLike):
        escaped = "".join(
            f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else "\\" + c if c in '"\\' else c for c in str(value)
        )
        return f'"{escaped}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def check(base_model: str, dataset: str) -> list[str]:
    """Look, without network, whether base and data are there.

    Returns:
        What could not be looked at, for the person to know.

    Raises:
        UsageError: a folder or file is named that is not there or is of no use.
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


def write(out: Path, base_model: str, dataset: str) -> None:
    """Write the file, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(render(base_model, dataset, out.name), encoding="utf-8", newline="\n")
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError("template.not_written", out=out, error=str(error)) from None
