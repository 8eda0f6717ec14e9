"""Tests of --help and aegis.toml in the user's language: every command and setting has a text, and none is unused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from aegis.cli.app import app
from aegis.cli.registry import PANELS, commands
from aegis.config.settings import SECTIONS
from aegis.messages import VARIABLE, descriptions, layout, translate_help
from tests.messages.test_messages import JAPANESE
from tests.screen_texts import english_in

TYPERS = {"Usage", "Arguments", "Options", "[OPTIONS]", "COMMAND [ARGS]...", "required", "Examples"}
TYPERS_OPTIONS = {"help", "install_completion", "show_completion"}
"""What typer brings along; its texts may be others in another version."""
FOLDED_AT = 78


def contexts() -> Iterator[Any]:
    """Yield a context of the program and of every command."""
    group: Any = typer.main.get_command(app)
    root = group.make_context("aegis", [], resilient_parsing=True)
    yield root
    for name, entry in commands().items():
        yield entry.built.make_context(name, [], parent=root, resilient_parsing=True)


CONTEXTS = {context.info_name: context for context in contexts()}


def texts() -> dict[str, set[str]]:
    """Return every help text with the names of the commands and options that it describes."""
    found: dict[str, set[str]] = {}
    for name, context in CONTEXTS.items():
        found.setdefault(context.command.help, set()).add(f"aegis {name}")
        for parameter in context.command.get_params(context):
            if parameter.name not in TYPERS_OPTIONS:
                found.setdefault(parameter.help, set()).add(parameter.name)
    settings = {str(field.description): key for model in SECTIONS.values() for key, field in model.model_fields.items()}
    return found | {text: {key} for text, key in settings.items()}


def titles() -> set[str]:
    """Return the titles of groups, of commands and of options."""
    parameters = (parameter for context in CONTEXTS.values() for parameter in context.command.get_params(context))
    panels = {getattr(parameter, "rich_help_panel", None) for parameter in parameters}
    return {*PANELS, *filter(None, panels)}


def typers_texts() -> set[str]:
    parameters = [parameter for context in CONTEXTS.values() for parameter in context.command.get_params(context)]
    return TYPERS | {parameter.help for parameter in parameters if parameter.name in TYPERS_OPTIONS}


def faults(known: dict[str, str]) -> tuple[set[str], set[str]]:
    """Return the texts without a translation, and the unused translations."""
    described = texts().keys() | titles()
    return described - known.keys(), known.keys() - described - typers_texts()


def test_every_help_text_has_one_japanese_text_and_none_is_unused() -> None:
    known = descriptions("ja")
    assert len(texts()) > 100
    assert faults(known) == (set(), set())
    assert [text for text, theirs in known.items() if not JAPANESE.search(theirs) or english_in(theirs)] == []


def test_a_missing_or_unused_text_is_found() -> None:
    """The control: a description that was changed is both."""
    known = dict(descriptions("ja"))
    known["rank of an adapter"] = known.pop("rank of the adapter")
    assert faults(known) == ({"rank of the adapter"}, {"rank of an adapter"})


def test_each_text_belongs_to_one_option_or_command() -> None:
    """Else it could be right in English only: "of the adapter" is a learning rate here."""
    assert {text: names for text, names in texts().items() if len(names) > 1} == {}


@pytest.mark.parametrize("name", CONTEXTS)
def test_help_is_japanese_and_fits_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every option in it; the control is the English one."""
    context = CONTEXTS[name]
    english = context.command.get_help(context)
    monkeypatch.setenv(VARIABLE, "ja")
    japanese = context.command.get_help(context)
    parameters = [found for found in context.command.get_params(context) if found.param_type_name == "option"]
    options = [option for parameter in parameters for option in parameter.opts]
    for text in (english, japanese):
        assert all(option in text for option in options)
    assert english_in(english)
    shown = japanese.partition(f"\n{translate_help('Examples')}:")[0]
    assert english_in(shown) == []
    names = {name for context in CONTEXTS.values() for name in getattr(context.command, "commands", {})}
    assert all(layout.cell_width(line) <= FOLDED_AT for line in japanese.splitlines())
    assert name != "aegis" or all(f"\n  {command} " in japanese for command in names)
    assert japanese.startswith(f"使い方: {context.command_path} ")


def test_defaults_and_ranges_are_shown_in_japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ja")

    def line(command: str, option: str) -> str:
        text = CONTEXTS[command].command.get_help(CONTEXTS[command])
        return " ".join(text.partition(f"  {option} ")[2].partition("\n  -")[0].split())

    assert line("chat", "-p, --prompt") == "TEXT 一度だけ質問して終了"
    assert line("report", "--max-tokens").endswith("[96]")
    assert "[必須]" in CONTEXTS["import-soul"].command.get_help(CONTEXTS["import-soul"])
    assert line("train", "--lora-r").endswith(f"{translate_help('rank of the adapter')} [16]")
    assert line("quantize-study", "--quant").endswith("[Q3_K_M, Q4_K_M, Q5_K_M, Q6_K, Q8_0]")
    assert line("train", "--config").endswith("のある TOML ファイル")  # its brackets are no default


def test_shell_completion_shows_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands by their first sentence, options with theirs."""

    def offered(command: str, start: str) -> dict[str, str]:
        context = CONTEXTS[command]
        return {item.value: item.help for item in context.command.shell_complete(context, start)}

    assert offered("train", "--max-l") == {"--max-length": "tokens per window"}
    assert offered("aegis", "tra") == {"train": "Train an adapter and a soul"}
    monkeypatch.setenv(VARIABLE, "ja")
    assert offered("train", "--max-l") == {"--max-length": "1 ウィンドウのトークン数"}
    assert offered("aegis", "tra") == {"train": "アダプターと魂を学習します"}
    assert offered("aegis", "--q") == {"--quiet": "警告と結果だけを表示"}


def test_an_untranslated_text_is_shown_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ja")
    assert translate_help("something new") == "something new"
    monkeypatch.setenv(VARIABLE, "en")
    assert translate_help("rank of the adapter") == "rank of the adapter"
