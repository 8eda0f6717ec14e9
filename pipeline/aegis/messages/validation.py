"""Describes pydantic's validation errors in the reader's language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.messages import phrase

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_STEPS = 999_999_999
"""Maximum number of steps that a setting may say."""

_KINDS = {
    "bool_parsing": "problems.bool_parsing",
    "bool_type": "problems.bool_type",
    "finite_number": "problems.finite_number",
    "float_parsing": "problems.float_parsing",
    "float_type": "problems.float_type",
    "greater_than": "problems.greater_than",
    "greater_than_equal": "problems.greater_than_equal",
    "int_from_float": "problems.int_from_float",
    "int_parsing": "problems.int_parsing",
    "int_parsing_size": "problems.int_parsing_size",
    "int_type": "problems.int_type",
    "less_than": "problems.less_than",
    "less_than_equal": "problems.less_than_equal",
    "path_type": "problems.path_type",
    "string_type": "problems.string_type",
    "too_short": "problems.too_few",
    "tuple_type": "problems.tuple_type",
}
"""pydantic's error types and their messages, without the types that no setting of AEGIS can have."""


def describe_validation_error(problem: ErrorDetails) -> str:
    """Return one problem as text; pydantic's own English if there is no message for its type."""
    # a bound of a setting with a fraction is shown like any other
    bounds = problem.get("ctx", {}).items()
    values = {name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound for name, bound in bounds}
    kind = problem["type"]
    if kind == "literal_error":
        first, _, last = str(values["expected"]).rpartition(" or ")
        return phrase("problems.one_of", first=first, last=last) if first else problem["msg"]
    if kind == "string_pattern_mismatch":
        return phrase("problems.steps", most=MAX_STEPS)
    if kind in _KINDS:
        return phrase(_KINDS[kind], **values)
    return problem["msg"].removeprefix("Value error, ")
