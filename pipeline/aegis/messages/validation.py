"""Describes pydantic's validation errors in the reader's language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.messages import phrase

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

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
    "int_type": "problems.int_type",
    "less_than": "problems.less_than",
    "less_than_equal": "problems.less_than_equal",
    "path_type": "problems.path_type",
    "string_pattern_mismatch": "problems.steps",
    "string_type": "problems.string_type",
    "too_short": "problems.too_few",
    "tuple_type": "problems.tuple_type",
}
"""pydantic's error types and their messages, without the types that no setting of AEGIS can have.

The only pattern is that of a number of steps, in `config.settings`.
"""


def describe_validation_error(problem: ErrorDetails) -> str:
    """Return one problem as text; pydantic's own English if there is no message for its type."""
    kind, values = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        first, _, last = str(values["expected"]).rpartition(" or ")
        return phrase("problems.one_of", first=first, last=last) if first else problem["msg"]
    if kind in _KINDS:
        return phrase(_KINDS[kind], **values)
    return problem["msg"].removeprefix("Value error, ")
