"""Writes a chat format as the Go template of a Modelfile's TEMPLATE."""

from __future__ import annotations

from aegis.llama_cpp.ollama.dialogue import Dialogue, Folded

_SYSTEM_FIRST = '(eq (index $.Messages 0).Role "system")'


def go_template(dialogue: Dialogue) -> str:
    """Return the dialogue as a Go template over .Messages; every literal is a quoted constant, so none can leak."""
    branches = []
    if isinstance(dialogue.system, tuple):
        condition = 'eq .Role "system"'
        if dialogue.skips_empty_system:
            condition = f"and ({condition}) .Content"
        branches.append((condition, _around(dialogue.system, "")))
    folded = _folded(dialogue.system, dialogue.skips_empty_system) if isinstance(dialogue.system, Folded) else ""
    branches += [
        ('eq .Role "user"', _around(dialogue.user, folded)),
        ('eq .Role "assistant"', _around(dialogue.assistant, "")),
    ]
    body = "\n{{- else ".join(f"if {condition} }}}}{text}" for condition, text in branches)
    opening = ""
    if dialogue.opening:
        own = isinstance(dialogue.system, tuple)
        unless = f"{{{{- if not {_has_system(dialogue.skips_empty_system)} }}}}" if own else ""
        opening = f"{unless}{_text(dialogue.opening)}{'{{ end }}' if own else ''}\n"
    return (
        f"{opening}{{{{- range $i, $_ := .Messages }}}}\n{{{{- {body}\n{{{{- end }}}}\n{{{{- end }}}}"
        f"{_text(dialogue.cue)}"
    )


def _around(literals: tuple[str, str], inside: str) -> str:
    return f"{_text(literals[0])}{inside}{{{{ .Content }}}}{_text(literals[1])}"


def _folded(system: Folded, skips_empty: bool) -> str:
    """Return the template of a system message inside a user message: the one after it, or the last."""
    is_host = "(eq (len (slice $.Messages $i)) 1)" if system.in_last else "(eq $i 1)"
    has_system = _has_system(skips_empty)
    text = f"{_text(system.lead)}{{{{ (index $.Messages 0).Content }}}}{_text(system.between)}"
    return f"{{{{ if and {has_system} {is_host} }}}}{text}{{{{ end }}}}"


def _has_system(skips_empty: bool) -> str:
    return f"(and {_SYSTEM_FIRST} (index $.Messages 0).Content)" if skips_empty else _SYSTEM_FIRST


def _text(literal: str) -> str:
    if not literal:
        return ""
    return f'{{{{ "{"".join(map(_go_letter, literal))}" }}}}'


def _go_letter(letter: str) -> str:
    """Escape a character of a Go string constant; Ollama's parser drops unprintable ones, even an ideographic space."""
    if letter == "\n":
        return "\\n"
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
