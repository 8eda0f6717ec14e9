"""Writes Ollama's Modelfile: the chat format as a Go template, the stops, the context and the user's own defaults.

The first three are explicit: Ollama guesses a template from a list and finds none for Phi-3.5, and its default context
grows with the card, beyond the length from which llama.cpp changes Phi-3.5's rope factors for every token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from aegis.llama_cpp.ollama.dialogue import Dialogue
from aegis.llama_cpp.ollama.go_template import go_template


@dataclass(frozen=True)
class Defaults:
    """What Ollama uses where a chat has no system message, or a request no temperature; None leaves it to Ollama."""

    system: str | None = None
    temperature: float | None = None


NO_DEFAULTS = Defaults()


def modelfile(
    gguf_name: str,
    dialogue: Dialogue | None,
    stops: Sequence[str],
    context_tokens: int,
    *,
    has_template: bool = True,
    defaults: Defaults = NO_DEFAULTS,
) -> str:
    """Return the text of a Modelfile in the folder of `gguf_name`.

    Without a `dialogue` it has no TEMPLATE, and a comment says so: Ollama then looks for a similar template in its own
    list, and passes the prompt on without a template if it finds none.
    """
    lines = [f"FROM ./{gguf_name}"]
    if dialogue is None and has_template:
        lines += [
            "# The chat template of this model could not be put into Ollama's template language, so there is no",
            "# TEMPLATE here. llama-server --jinja and aegis chat use the one that is in the GGUF.",
        ]
    elif dialogue is not None:
        lines += [f"# Unlike the model's own chat template: {departure}." for departure in dialogue.departures]
        lines.append(f'TEMPLATE """{go_template(dialogue)}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if can_be_written(stop)]
    lines.append(f"PARAMETER num_ctx {context_tokens}")
    if defaults.temperature is not None:
        lines.append(f"PARAMETER temperature {defaults.temperature}")
    if defaults.system is not None:
        lines.append(f'SYSTEM """{defaults.system}"""')
    return "\n".join(lines) + "\n"


def hub_files(
    dialogue: Dialogue | None, stops: Sequence[str], context_tokens: int, defaults: Defaults = NO_DEFAULTS
) -> dict[str, str]:
    """Return the files that `ollama run hf.co/OWNER/NAME` reads from a repository, by name; it ignores a Modelfile."""
    parameters: dict[str, object] = {"num_ctx": context_tokens, "stop": list(stops)}
    if defaults.temperature is not None:
        parameters["temperature"] = defaults.temperature
    files = {"params": json.dumps(parameters, ensure_ascii=False, indent=2) + "\n"}
    if defaults.system is not None:
        files["system"] = defaults.system
    return files if dialogue is None else {**files, "template": go_template(dialogue)}


def can_be_system(text: str) -> bool:
    """Whether Ollama reads a system message from a Modelfile unchanged, and only as one; it stands in three quotes."""
    is_shown = all(letter.isprintable() or letter in "\n\t" for letter in text)
    return bool(text.strip()) and is_shown and '"""' not in text and not text.startswith('"') and not text.endswith('"')


def can_be_written(stop: str) -> bool:
    """Whether Ollama reads a stop from a Modelfile unchanged, and only as a stop.

    Between quotes Ollama reads every character literally and knows no escapes. It drops characters that do not print,
    ends the command at a quote before a line feed, and reads everything after three quotes at the start.
    """
    return stop.isprintable() and not f'"{stop}"'.startswith('"""')


def stop_texts(special_tokens: Sequence[str], dialogue: Dialogue | None, end_tokens: Sequence[str]) -> list[str]:
    """Return the texts at which generation ends: the model's end tokens, and the tags that open a turn."""
    opening = "" if dialogue is None else dialogue.user[0] + dialogue.assistant[0] + dialogue.cue
    tags = [token for token in special_tokens if token in opening]
    return list(dict.fromkeys([*end_tokens, *tags]))
