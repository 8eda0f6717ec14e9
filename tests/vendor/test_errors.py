"""Tests that every error of this package has a code, an English text, and the caller's text in each language."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vendor_llama_cpp
from aegis.errors import AegisError
from aegis.llama_cpp import find_converter
from aegis.messages import LANGUAGES, VARIABLE, catalogue
from tests.screen_texts import english_in
from vendor_llama_cpp import TEXTS, VendorError

SOURCES = sorted(Path(vendor_llama_cpp.__file__).parent.glob("*.py"))


class ErrorText(NamedTuple):
    what: str
    why: str
    fix: str


def places(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the placeholders of each of a message's parts."""
    return {
        part: {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        for part, text in texts.items()
    }


def misfits(texts: Mapping[str, ErrorText], group: Mapping[str, Any]) -> set[str]:
    """Return the codes that one side lacks, or whose placeholders differ."""
    ours = {code: places(text._asdict()) for code, text in texts.items()}
    return {code for code in ours.keys() | group.keys() if code not in group or places(group[code]) != ours.get(code)}


ENGLISH = {code: ErrorText(*text) for code, text in TEXTS.items()}


def raised() -> Iterator[tuple[str, set[str]]]:
    """Return every code with the facts that are given where it is raised."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "VendorError":
                codes = {at.value for at in ast.walk(node.args[0]) if isinstance(at, ast.Constant)} & TEXTS.keys()
                assert codes, f"{path.name}:{node.lineno}"
                yield from ((code, {str(keyword.arg) for keyword in node.keywords}) for code in codes)


def test_every_code_is_in_every_catalogue_with_the_same_placeholders() -> None:
    for spoken in LANGUAGES:
        assert misfits(ENGLISH, catalogue(spoken)["vendor"]) == set()
    assert {code: ErrorText(**text) for code, text in catalogue("en")["vendor"].items()} == ENGLISH


def test_a_missing_code_or_placeholder_is_found() -> None:
    """The control of the one above."""
    group = dict(catalogue("ja")["vendor"])
    without = {code: text for code, text in group.items() if code != "disk.full"}
    assert misfits(ENGLISH, without) == {"disk.full"}
    assert misfits(ENGLISH, {**group, "disk.other": group["disk.full"]}) == {"disk.other"}
    assert misfits(ENGLISH, {**group, "hash.tree": {**group["hash.tree"], "why": "{files}"}}) == {"hash.tree"}


def test_every_code_is_raised_with_all_its_facts() -> None:
    assert dict(raised()) == {code: facts_of(code) for code in TEXTS}


def facts_of(code: str) -> set[str]:
    return set().union(*places(TEXTS[code]._asdict()).values())


@pytest.mark.parametrize("code", TEXTS)
def test_a_japanese_user_sees_no_english_message(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the package's own texts are English. Of pip's lines, only the bar before them is this package's."""
    facts: dict[str, object] = dict.fromkeys(facts_of(code), "X")
    if "output" in facts:
        facts["output"] = "| ERROR: No matching distribution found"
    error = VendorError(code, **facts)

    def fail(_: object) -> Path:
        raise error

    monkeypatch.setattr(vendor_llama_cpp, "converter_tree", fail)
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    shown = {}
    for spoken in LANGUAGES:
        monkeypatch.setenv(VARIABLE, spoken)
        with pytest.raises(AegisError) as caught:
            find_converter()
        shown[spoken] = str(caught.value)
    assert shown["en"] == str(error)
    assert english_in(shown["en"])
    ours = "\n".join(line for line in shown["ja"].splitlines() if not line.startswith("| "))
    assert english_in(ours) == [], ours
    assert ("| ERROR: No matching" in shown["ja"]) == ("output" in facts)
