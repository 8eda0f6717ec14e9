"""Resolves the settings of a stage from defaults, preset, TOML file, environment and command line.

Later sources win. An unknown key is refused, and the message has the nearest known name.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from aegis.config.presets import PRESETS
from aegis.config.settings import SECTIONS
from aegis.config.stage_config import StageConfig
from aegis.config.toml_values import as_toml
from aegis.errors import UsageError
from aegis.messages import phrase, validation

Config = TypeVar("Config", bound=StageConfig)

_ITEM = re.compile(r'(?:"[^"]*"|[^,])+')
"""An item of a list with commas; a comma in double quotes belongs to it."""

_ALTERNATIVES = {"max_steps": "epochs", "epochs": "max_steps"}
"""Two settings that say the same in two ways: the one of the later source counts."""

_SHOWN = 200
"""Maximum characters of a wrong value in a message."""

_OTHER_VARIABLES = ("AEGIS_CACHE_DIR", "AEGIS_LANG", "AEGIS_LLAMA_SDIST", "AEGIS_LLAMA_WHEEL", "AEGIS_LOG_DIR")


def resolve(
    model: type[Config],
    *,
    preset: str | None = None,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Build one stage's config from every source.

    Args:
        model: a value of `SECTIONS`.
        preset: a name in `PRESETS`.
        file: TOML with the tables [train], [merge], [export], [verify] and [study].
        environment: AEGIS_<STAGE>_<KEY> are read, e.g. AEGIS_TRAIN_MAX_STEPS; os.environ if not given.
        flags: the command line's settings; None means that the flag was not given.

    Raises:
        UsageError: a preset, key or value is unknown; the message has the nearest known name. Or one source gives two
            settings that say the same.
    """
    section = next(name for name, known in SECTIONS.items() if known is model)
    sources = [
        {} if preset is None else settings_of(preset).get(section, {}),
        {} if file is None else _read_toml(file).get(section, {}),
        _read_environment(os.environ if environment is None else environment).get(section, {}),
        {key: value for key, value in (flags or {}).items() if value is not None},
    ]
    values: dict[str, Any] = {}
    for source in sources:
        values = _overridden(values, source, section)
    for key in (name for name, field in model.model_fields.items() if field.annotation == tuple[str, ...]):
        # accept "a,b" as well as two values: the environment has no lists, and people use both on a command line
        given = [values[key]] if isinstance(values.get(key), str) else values.get(key)
        if isinstance(given, list) and all(isinstance(text, str) for text in given):
            values[key] = [part.strip() for text in given for part in _ITEM.findall(text) if part.strip()]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError("config.invalid", problems=_explain(model, section, error)) from None


def _overridden(values: Mapping[str, Any], source: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the values with those of a later source; one of `_ALTERNATIVES` takes the other's place."""
    if source.keys() >= _ALTERNATIVES.keys():
        raise UsageError("config.alternatives", section=section, names=" + ".join(_ALTERNATIVES))
    return {key: value for key, value in values.items() if _ALTERNATIVES.get(key) not in source} | dict(source)


def settings_of(preset: str) -> Mapping[str, Mapping[str, Any]]:
    """Return a preset's settings by section.

    Raises:
        UsageError: there is no such preset; the message has the nearest name.
    """
    if preset not in PRESETS:
        hint = _nearest(preset, PRESETS) or phrase("config.known", names=", ".join(PRESETS))
        raise UsageError("config.no_preset", preset=preset, hint=hint)
    return PRESETS[preset]


def _read_environment(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    known = {f"AEGIS_{s}_{k}".upper(): (s, k) for s, model in SECTIONS.items() for k in model.model_fields}
    for name, text in environment.items():
        if name in known:
            section, key = known[name]
            found[section][key] = text
        elif name.startswith("AEGIS_") and name not in _OTHER_VARIABLES:
            raise UsageError("config.unknown_variable", name=name, nearest=_nearest(name, known))
    return found


def _read_toml(file: Path) -> dict[str, dict[str, Any]]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError("config.no_config_file", file=file) from None
    except UnicodeDecodeError:
        raise UsageError("config.not_utf8", file=file) from None
    except RecursionError:
        raise UsageError("config.cannot_read_toml", file=file, error=phrase("config.deep_toml")) from None
    except (OSError, ValueError) as error:  # ValueError itself for a number of 5,000 digits
        raise UsageError("config.cannot_read_toml", file=file, error=str(error)) from None
    for section, table in document.items():
        homes = [name for name, model in SECTIONS.items() if section in model.model_fields]
        if homes:
            raise UsageError("config.outside_a_table", file=file, key=section, sections=", ".join(homes))
        if section in SECTIONS and not isinstance(table, dict):
            raise UsageError("config.no_table", file=file, section=section)
        if section not in SECTIONS:
            raise UsageError(
                "config.unknown_table",
                file=file,
                section=section,
                hint=_nearest(section, SECTIONS)
                or phrase("config.known", names=", ".join(f"[{name}]" for name in SECTIONS)),
            )
        known = SECTIONS[section].model_fields
        for key in table:
            if key not in known:
                raise UsageError(
                    "config.unknown_key", file=file, section=section, key=key, nearest=_nearest(key, known)
                )
    return document


def _explain(model: type[StageConfig], section: str, error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or section
        if problem["type"] == "extra_forbidden":
            nearest = _nearest(key, model.model_fields)
            lines.append(phrase("config.unknown_setting", section=section, key=key, nearest=nearest).rstrip())
        else:
            message = validation.describe_validation_error(problem)
            shown = f"{key} = {_shortened(as_toml(problem['input']))}: " if problem["loc"] else ""
            lines.append(f"{section}: {shown}{message}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return phrase("config.nearest", name=close[0]) if close else ""
