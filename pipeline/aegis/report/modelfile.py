"""Ollama's Modelfile: the chat format as a Go template, the stops, the context.

All three are written out. Ollama guesses a template by its likeness to a list and finds none for Phi-3.5, and its
default context grows with the card, past the point where llama.cpp changes Phi-3.5's rope factors for every token.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis.report.dialogue import Dialogue


def modelfile(gguf_name: str, dialogue: Dialogue | None, stops: Sequence[str], context_tokens: int) -> str:
    """Return the text of a Modelfile that stands beside `gguf_name`.

    Without a `dialogue` no TEMPLATE is written, and a comment says so: Ollama then renders the template that is in
    the GGUF, as far as it can.
    """
    lines = [f"FROM ./{gguf_name}"]
    if dialogue is None:
        lines.append("# The chat template of this model could not be put into Ollama's template language.")
    else:
        lines.append(f'TEMPLATE """{go_template(dialogue)}"""')
    # between its quotes Ollama takes every letter as it stands; it knows no escapes
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append(f"PARAMETER num_ctx {context_tokens}")
    return "\n".join(lines) + "\n"


def go_template(dialogue: Dialogue) -> str:
    """Return the dialogue as a text/template over .Messages; every literal is a quoted constant, so none can leak."""
    branches: list[str] = []
    for role, around in (
        ("system", dialogue.system),
        ("user", dialogue.user),
        ("assistant", dialogue.assistant),
    ):
        if around is not None:
            word = "else if" if branches else "if"
            branches.append(
                f'{{{{- {word} eq .Role "{role}" }}}}{_text(around[0])}{{{{ .Content }}}}{_text(around[1])}'
            )
    opening = ""
    if dialogue.opening:
        opening = f'{{{{- if ne (index .Messages 0).Role "system" }}}}{_text(dialogue.opening)}{{{{ end }}}}\n'
    body = "\n".join(branches)
    return f"{opening}{{{{- range .Messages }}}}\n{body}\n{{{{- end }}}}\n{{{{- end }}}}{_text(dialogue.cue)}"


def stop_texts(special_tokens: Sequence[str], dialogue: Dialogue | None, end_tokens: Sequence[str]) -> list[str]:
    """The texts at which generation ends: the model's end tokens, and any tag that opens a turn."""
    opening = "" if dialogue is None else dialogue.user[0] + dialogue.assistant[0] + dialogue.cue
    tags = [token for token in special_tokens if token in opening]
    return list(dict.fromkeys([*end_tokens, *tags]))


def _text(literal: str) -> str:
    if not literal:
        return ""
    return f'{{{{ "{"".join(map(_go_letter, literal))}" }}}}'


def _go_letter(letter: str) -> str:
    """A letter inside a Go string constant; Ollama's parser drops what does not print, an ideographic space too."""
    if letter == "\n":
        return "\\n"
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
