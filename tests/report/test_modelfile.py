"""The Modelfile: what Ollama's parser and Go's templates make of it is the model's own chat format."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from aegis.report.dialogue import Dialogue
from aegis.report.modelfile import go_template, modelfile, stop_texts
from tests.report.test_dialogue import HAS_SYSTEM, TEMPLATES, conversation, derived

NASTY = Dialogue(
    opening='"""{{ .Secret }}"""',
    system=("{{- end }}", "\\"),
    user=("\u3000改行\n", '"'),
    assistant=("\t`'", "\u200b😀\r\n\x07"),
    cue='"""',
)


def parse(text: str) -> list[tuple[str, str]]:
    """Commands and values as Ollama reads them: quotes, one or three; no escapes; what does not print is dropped."""
    commands = []
    rest = text
    while rest.strip():
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        word, rest = rest.split(" ", 1)
        end = rest.index('"""', 3) + 3 if rest.startswith('"""') else rest.index("\n")
        value, rest = rest[:end], rest[end:].removeprefix("\n")
        value = "".join(letter for letter in value if letter.isprintable() or letter in "\r\n\t")
        for quote in ('"""', '"'):
            if value.startswith(quote):
                value = value[len(quote) : -len(quote)]
                break
        commands.append((word, value))
    return commands


def execute(template: str, messages: list[dict[str, str]]) -> str:
    """Go's text/template, as much of it as is written here: range, if, else if, end, constants, fields, trimming."""
    tokens: list[Any] = []
    position = 0
    for match in re.finditer(r'\{\{(-?)\s*((?:"(?:\\.|[^"\\])*"|[^"}])*?)\s*\}\}', template):
        literal = template[position : match.start()]
        tokens += [("text", literal.rstrip() if match[1] else literal), ("do", match[2])]
        position = match.end()
    tokens.append(("text", template[position:]))

    def test(condition: str, dot: Any) -> bool:
        function, subject, constant = re.fullmatch(r"(eq|ne) (.+) (\".*\")", condition).groups()  # type: ignore[union-attr]
        found = messages[0]["role"] if subject == "(index .Messages 0).Role" else dot["role"]
        assert subject in (".Role", "(index .Messages 0).Role")
        return (found == json.loads(constant)) == (function == "eq")

    def block(at: int, dot: Any, live: bool) -> tuple[str, int]:
        """Run until the end or else that closes this block; (text, index of the closer)."""
        out = ""
        while at < len(tokens):
            kind, text = tokens[at]
            if kind == "text":
                out += text if live else ""
            elif text == "end" or text.startswith("else"):
                return out, at
            elif text.startswith("if "):
                done = False
                while True:
                    condition = text.removeprefix("else ").removeprefix("if ")
                    chosen = live and not done and (text == "else" or test(condition, dot))
                    inner, at = block(at + 1, dot, chosen)
                    out += inner
                    done = done or chosen
                    text = tokens[at][1]
                    if text == "end":
                        break
            elif text == "range .Messages":
                begin = at + 1
                _, at = block(begin, None, False)
                out += "".join(block(begin, message, live)[0] for message in messages)
            elif live:
                out += dot["content"] if text == ".Content" else constant(text)
            at += 1
        return out, at

    return block(0, None, True)[0]


def constant(text: str) -> str:
    assert text.startswith('"'), f"not a constant: {text}"
    return json.loads(re.sub(r"\\U([0-9a-f]{8})", lambda match: chr(int(match[1], 16)), text))


@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_renders_what_the_template_renders(name: str) -> None:
    """Through the Modelfile's quoting and the Go template back to text: the model's own, for every conversation."""
    dialogue, render = derived(name)
    (_, template), *_rest = [pair for pair in parse(modelfile("m.gguf", dialogue, [], 4096)) if pair[0] == "TEMPLATE"]
    bos = TEMPLATES[name][1] or ""
    for turns in range(3):
        for system in {False, name in HAS_SYSTEM}:
            messages = conversation(turns, system=system)
            assert bos + execute(template, messages) == render(messages, True)


def test_no_literal_leaks() -> None:
    """Quotes, braces, backslashes, newlines, what does not print: each comes out as it went in."""
    (_, template), *_rest = [pair for pair in parse(modelfile("m.gguf", NASTY, [], 4096)) if pair[0] == "TEMPLATE"]
    assert template == go_template(NASTY)
    for system in (False, True):
        messages = conversation(2, system=system)
        assert execute(template, messages) == NASTY.render(messages)


def test_the_whole_file() -> None:
    dialogue, _ = derived("phi3")
    text = modelfile("AEGIS-日本-Q4_K_M.gguf", dialogue, ["<|end|>", "終わり。", 'a"b\\n'], 4096)
    commands = parse(text)
    assert commands[0] == ("FROM", "./AEGIS-日本-Q4_K_M.gguf")
    assert commands[1][0] == "TEMPLATE"
    assert [value for word, value in commands[2:]] == [
        'stop "<|end|>"',
        'stop "終わり。"',
        'stop "a"b\\n"',
        "num_ctx 4096",
    ]
    assert text.endswith("\n")


def test_without_a_dialogue_it_says_so() -> None:
    text = modelfile("m.gguf", None, ["</s>"], 2048)
    assert "TEMPLATE" not in re.sub("#.*", "", text)
    assert "# The chat template" in text
    assert parse(text) == [("FROM", "./m.gguf"), ("PARAMETER", 'stop "</s>"'), ("PARAMETER", "num_ctx 2048")]


def test_stops_are_the_ends_and_the_tags_that_open_a_turn() -> None:
    dialogue, _ = derived("phi3")
    specials = ["<unk>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<|user|>", "<|system|>"]
    assert stop_texts(specials, dialogue, ["<|end|>", "<|endoftext|>", "<|end|>"]) == [
        "<|end|>",
        "<|endoftext|>",
        "<|assistant|>",
        "<|user|>",
    ]
    assert stop_texts(specials, None, ["</s>"]) == ["</s>"]
