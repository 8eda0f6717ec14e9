"""The base class of all stage configs: frozen; unknown keys, misplaced booleans, and huge numbers are refused."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from aegis.messages import phrase
from aegis.runs.disk import at_home

PLACES_AS_TEXT = frozenset({"base_model", "dataset", "keep_data"})
"""Settings of type str that hold a path or a Hub id."""

MAX_NUMBER = 2**31 - 1
"""Largest number that a setting may have: products of a few settings then fit 64 bits, and a float."""
MAX_THREADS = 4096
"""Maximum number of threads for llama.cpp, more than any machine has cores."""


def names_place(name: str, annotation: object) -> bool:
    """Return whether a setting holds a path, or may hold one."""
    return name in PLACES_AS_TEXT or "Path" in str(annotation)


class StageConfig(BaseModel):
    # validate the defaults too: an int as the default of a float would change its type when it is read back from JSON
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="after")
    @classmethod
    def _paths_begin_at_home(cls, value: object, info: ValidationInfo) -> object:
        # the name of the data may hold several paths; `data.sources` separates them
        if isinstance(value, Path):
            return at_home(value)
        if isinstance(value, str) and info.field_name == "base_model" and value.startswith("~"):
            return str(at_home(value))
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _numbers_are_not_huge(cls, value: object) -> object:
        if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
            raise ValueError(
                phrase("problems.less_than_equal", le=MAX_NUMBER)
                if value > 0
                else phrase("problems.greater_than_equal", ge=-MAX_NUMBER)
            )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _places_have_a_name(cls, value: object, info: ValidationInfo) -> object:
        # an empty path would be the current folder: where a variable of a shell is not set, nobody means it
        if value == "" and names_place(str(info.field_name), cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(phrase("config.empty"))
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_not_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic would accept true as 1
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(phrase("config.switch"))
        return value
