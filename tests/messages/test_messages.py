"""Tests of the message catalogues: the same keys in every language, and every key that the code uses."""

from __future__ import annotations

import ast
import pickle
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aegis
from aegis import errors, messages
from aegis.errors import AegisError, Interrupted, UsageError
from aegis.messages import LANGUAGES, Language, catalogue, language, phrase

SOURCES = sorted(Path(aegis.__file__).parent.rglob("*.py"))
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AegisError)}
JAPANESE = re.compile("[぀-ヿ一-鿿]")


def entries(spoken: Language) -> dict[str, str | dict[str, str]]:
    return {f"{group}.{name}": entry for group, table in catalogue(spoken).items() for name, entry in table.items()}


def places(entry: str | dict[str, str]) -> set[str]:
    """Return the placeholders of a message with their formats."""
    texts = [entry] if isinstance(entry, str) else entry.values()
    return {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("spoken", LANGUAGES)
def test_every_part_of_an_error_begins_small_and_ends_without_a_period(spoken: Language) -> None:
    """The texts for the command line are Click's own."""
    names = ("PATH", "WORLD_SIZE", "NOT", "Ollama", "GGUF", "NF4", "LM", "PyTorch", "Windows", "NVML")
    for key, entry in entries(spoken).items():
        for part in ("what", "why", "fix") if isinstance(entry, dict) and key != "usage.no_command" else ():
            text = entry.get(part, "").strip()
            assert not re.search(r"(?<!\.\.)[.。]$", text), key
            assert not text[:1].isupper() or text.startswith(names) or spoken == "ja", key


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Yield every call with a literal message key."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"phrase", "bilingual", *ERRORS}
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                yield path, node, str(node.args[0].value)


def test_every_language_has_the_same_messages_with_the_same_placeholders() -> None:
    english = entries("en")
    for spoken in LANGUAGES:
        other = entries(spoken)
        assert other.keys() == english.keys()
        for key, entry in english.items():
            theirs = other[key]
            assert type(theirs) is type(entry), key
            assert places(theirs) == places(entry), key
            if isinstance(entry, dict) and isinstance(theirs, dict):
                assert theirs.keys() == entry.keys(), key
                assert all(places(theirs[part]) == places(entry[part]) for part in entry), key


def test_every_message_of_the_japanese_catalogue_is_japanese() -> None:
    """Wherever the English message has words beside its placeholders."""
    for key, entry in entries("ja").items():
        english = entries("en")[key]
        pairs = zip(entry.values(), english.values(), strict=True) if isinstance(entry, dict) else [(entry, english)]
        for theirs, ours in pairs:
            words = re.sub(r"\{[^}]*\}|`[^`]*`", "", str(ours))
            assert JAPANESE.search(str(theirs)) or len(re.findall("[a-z]{3,}", words)) < 3, (key, theirs)


def test_every_call_gives_its_messages_placeholders() -> None:
    english = entries("en")
    found = list(calls())
    assert len(found) > 300
    for path, call, key in found:
        where = f"{path.name}:{call.lineno} {key}"
        assert key in english, where
        given = {keyword.arg for keyword in call.keywords} - {"exit_code"}
        assert given == places(english[key]), where
        assert isinstance(english[key], str) == (getattr(call.func, "id", "") in {"phrase", "bilingual"}), where


def test_every_message_is_used() -> None:
    written = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # groups whose names are those of values in reports, of labels of the report's page, or of the converter's codes:
    # the tests of the screens, of the page and of the converter compare them
    by_name = ("finding.", "kind.", "list_", "memory.", "need.", "not_built.", "page.", "vendor.", "web_page.")
    assert {key for key in entries("en") if not key.startswith(by_name)} <= written


@pytest.mark.parametrize(
    ("variables", "spoken"),
    [
        ({"AEGIS_LANG": "ja", "LANG": "en_US.UTF-8"}, "ja"),
        ({"AEGIS_LANG": "", "LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LC_ALL": "en_GB.UTF-8", "LANG": "ja_JP.UTF-8"}, "en"),
        ({"LC_MESSAGES": "ja_JP", "LANG": "C"}, "ja"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"AEGIS_LANG": "JA-jp"}, "ja"),
    ],
)
def test_the_language_is_the_one_of_the_users_settings(
    variables: dict[str, str], spoken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AEGIS_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == spoken


def test_the_language_is_found_under_windows_english_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AEGIS_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(messages.locale, "getlocale", lambda: ("Japanese_Japan", "932"))
    assert language() == "ja"


def test_an_error_that_is_pickled_keeps_its_texts() -> None:
    """Values need not: they can be anything."""
    unpicklable: Any = lambda: None  # noqa: E731
    error = UsageError("config.unknown_key", file=unpicklable, section="train", key="lr", nearest="?")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UsageError
    assert (again.what, again.why, again.fix) == (error.what, error.why, error.fix)
    assert str(again) == str(error)
    left = pickle.loads(pickle.dumps(Interrupted("train.stopped", exit_code=143, done=3, stop=9)))
    assert left.exit_code == 143


def test_error_keys_and_phrase_keys_cannot_be_exchanged() -> None:
    with pytest.raises(TypeError):
        phrase("config.unknown_key")
    with pytest.raises(TypeError):
        UsageError("config.nearest", name="x")
