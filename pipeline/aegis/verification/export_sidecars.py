"""Writes the files beside GGUF files: Modelfile, card and licences. Export publishes them; verify makes them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.errors import IntegrityError
from aegis.hub.client import CARD
from aegis.limits import VOCABULARY, read_json
from aegis.llama_cpp.ollama.dialogue import Dialogue
from aegis.llama_cpp.ollama.modelfile import NO_DEFAULTS, Defaults, can_be_written, hub_files, modelfile, stop_texts
from aegis.llama_cpp.ollama.probing import dialogue_of, special_texts
from aegis.messages import phrase
from aegis.model.base import load_tokenizer, read_config
from aegis.model.context import context_tokens
from aegis.model.provenance import copy_licences, provenance_of_folder
from aegis.report.card import CardFile, gguf_card

MODELFILE = "Modelfile"


def write_export_sidecars(
    model: Path,
    folder: Path,
    name: str,
    files: Sequence[CardFile],
    version: str,
    *,
    defaults: Defaults = NO_DEFAULTS,
    remarks: bool = True,
) -> None:
    """Write the Modelfile, the card and the licences beside GGUF files.

    Args:
        model: the folder that the files were converted from.
        name: general.name.
        files: the GGUF files; the first is the one to run.
        version: the program's version, for the card.
        defaults: the user's, for the Modelfile and the files of Ollama's Hub route.
        remarks: print what the Modelfile cannot reproduce of the chat template.

    Raises:
        IntegrityError: the folder's generation_config cannot be read.
        DataError: its chat template cannot be used.
    """
    config, tokenizer = read_config(model), load_tokenizer(model)
    context = context_tokens(config)
    dialogue = dialogue_of(tokenizer)
    if remarks:
        _say_what_is_lost(tokenizer, dialogue, defaults)
    ends = [token for token in tokenizer.convert_ids_to_tokens(end_tokens(model, config)) if token]
    stops = stop_texts(special_texts(tokenizer), dialogue, ends)
    if remarks and (left_out := [stop for stop in stops if not can_be_written(stop)]):
        progress.warn(phrase("export.stops_left_out", stops=", ".join(map(repr, left_out))))
    has_template = bool(tokenizer.chat_template)
    text = modelfile(files[0].name, dialogue, stops, context, has_template=has_template, defaults=defaults)
    (folder / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
    for file, content in hub_files(dialogue, stops, context, defaults).items():
        (folder / file).write_text(content, encoding="utf-8", newline="\n")
    copy_licences(model, folder)
    long_rope = bool(config.get("original_max_position_embeddings"))
    card = gguf_card(
        provenance_of_folder(model),
        name,
        files,
        version,
        context_tokens=context,
        long_rope=long_rope,
        prompt="" if dialogue is None else dialogue.render([{"role": "user", "content": "QUESTION"}]),
    )
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")


def _say_what_is_lost(tokenizer: Any, dialogue: Dialogue | None, defaults: Defaults) -> None:
    if not tokenizer.chat_template:
        progress.warn(phrase("export.without_template"))
    elif dialogue is None:
        progress.warn(phrase("export.no_template"))
    if defaults.system is not None and dialogue is not None and dialogue.system is None:
        progress.warn(phrase("export.no_place_for_system"))
    for departure in dialogue.departures if dialogue else ():
        progress.say(phrase("export.departure", departure=departure))


def end_tokens(model: Path, config: dict[str, Any]) -> list[int]:
    """Return the token ids at which generation ends.

    Raises:
        IntegrityError: generation_config.json is not a JSON object, or lists something other than ids.
    """
    # with the eos token of config.json alone, a Phi-3.5 never stops at <|end|>; generation_config lists all three
    ends = config.get("eos_token_id")
    path = model / "generation_config.json"
    if path.is_file():
        try:
            ends = read_json(path).get("eos_token_id", ends)
        except (OSError, ValueError, AttributeError) as error:
            raise IntegrityError("export.not_an_object", path=path, error=str(error)) from None
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(token) is int and 0 <= token < VOCABULARY for token in ends):
        raise IntegrityError("export.end_tokens", model=model, ends=ends)
    return ends
