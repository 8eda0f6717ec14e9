"""Tests that the parts of a chat template give the same text when joined, or that there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from aegis.llama_cpp.ollama.dialogue import Dialogue, Folded, Message
from aegis.llama_cpp.ollama.probing import dialogue_of, special_texts, take_apart
from aegis.model.base import load_tokenizer
from tests.llama_cpp.ollama.chats import FAMILIES, MISTRAL_V7, conversation, conversations, rendered, tokenizer_for

NUMBERED = (
    "{% for m in messages %}{{ loop.index }}. {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = "{{ '<|user|>\n' + messages[-1]['content'] + '<|end|>\n<|assistant|>\n' }}"
SHOUTING = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }} ({{ m['content'] | length }})\n{% endfor %}"
)
ALWAYS_DATED = "{{ '[' + strftime_now('%Y') + ']' }}{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
DEAF = (
    "{% for m in messages if m['role'] != 'system' %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def renderer(template: str) -> Callable[[Sequence[Message], bool], str]:
    compiled = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def render(messages: Sequence[Message], cue: bool) -> str:
        return compiled.render(messages=messages, add_generation_prompt=cue)

    return render


def derived(name: str) -> Dialogue:
    dialogue = dialogue_of(tokenizer_for(FAMILIES[name]))
    assert dialogue is not None
    return dialogue


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_a_dialogue_join_into_the_templates_text(name: str) -> None:
    """Every length, with and without a system message, contents with quotes, braces, newlines and Japanese."""
    family, dialogue = FAMILIES[name], derived(name)
    assert (dialogue.system is not None) == family.system
    for messages in conversations(system=family.system):
        assert dialogue.render(messages) == rendered(family, messages)


@pytest.mark.parametrize("name", FAMILIES)
def test_unsupported_parts_of_a_template_are_named(name: str) -> None:
    """Each liberty of the template, and none that it does not take."""
    assert len(derived(name).departures) == len(FAMILIES[name].departures)
    for found, wanted in zip(derived(name).departures, FAMILIES[name].departures, strict=True):
        assert found.startswith(wanted)


def test_the_parts_of_phi_3s_template_are_found() -> None:
    assert derived("phi3") == Dialogue(
        opening="",
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        assistant=("<|assistant|>\n", "<|end|>\n"),
        cue="<|assistant|>\n",
        skips_empty_system=True,
    )


def test_a_default_system_prompt_is_the_opening() -> None:
    assert derived("qwen2.5").opening == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def test_a_system_message_inside_a_users_turn_is_described() -> None:
    assert derived("gemma3").system == Folded("", "\n\n", in_last=False)
    assert derived("mistral-v3").system == Folded("", "\n\n", in_last=True)


def test_a_cut_never_splits_a_token() -> None:
    """user and assistant tags that begin alike: cut letter by letter, '<|a' would stay with the user's part."""
    dialogue = derived("llama3")
    assert dialogue.user[0] == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert dialogue.cue == "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_a_begin_token_that_llama_cpp_does_not_add_stays() -> None:
    """Whether a template writes it or the tokenizer adds it: it is there once."""
    family = FAMILIES["mistral-v7"]
    tokenizer = tokenizer_for(replace(family, eos="</s> "))  # a tokenizer of its own, not the shared one
    tokenizer.backend_tokenizer.post_processor = None
    dialogue = dialogue_of(tokenizer)
    assert dialogue is not None
    assert dialogue.opening == "<s>"
    assert dialogue.system == ("<s>[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    assert family.template == MISTRAL_V7
    assert derived("mistral-v7").opening == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_system_message_is_rendered_as_in_the_template(name: str) -> None:
    family, dialogue = FAMILIES[name], derived(name)
    if family.system:
        messages = [{"role": "system", "content": ""}, *conversation(1, system=False)]
        assert dialogue.render(messages) == rendered(family, messages)


@pytest.mark.parametrize(
    "template", [NUMBERED, FORGETFUL, SHOUTING, ALWAYS_DATED, "", "text", "{{ messages[7]['content'] }}"]
)
def test_a_template_that_is_not_literal_text_has_no_dialogue(template: str) -> None:
    assert take_apart(renderer(template), [], None) is None


def test_a_template_that_raises_has_no_dialogue() -> None:
    def failing(_messages: Sequence[Message], _cue: bool) -> str:
        raise ZeroDivisionError

    assert take_apart(failing, [], None) is None


def test_a_template_that_ignores_the_system_message_is_recognized() -> None:
    dialogue = take_apart(renderer(DEAF), [], None)
    assert dialogue is not None
    assert dialogue.departures == ("a system message is left out",)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_system_message_at_the_end_is_refused(name: str) -> None:
    messages = conversation(1, system=False)
    with pytest.raises(ValueError, match="no place"):
        derived(name).render([*messages, {"role": "system", "content": "x"}])


def test_the_template_of_a_real_tokenizer_is_described(quick_base: Path) -> None:
    """The quick base's own, through transformers: the same text for the same messages."""
    tokenizer = load_tokenizer(quick_base)
    dialogue = dialogue_of(tokenizer)
    assert dialogue is not None
    assert set(special_texts(tokenizer)) >= {*FAMILIES["phi3"].tags, "<|endoftext|>"}
    for messages in conversations(system=True):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert dialogue.render(messages) == wanted
    tokenizer.chat_template = None
    assert dialogue_of(tokenizer) is None


def test_the_template_of_phi_35_is_described(real: Callable[[str], Any]) -> None:
    """Phi-3.5-mini's own tokenizer and template."""
    tokenizer = real("Phi-3.5")
    dialogue = dialogue_of(tokenizer)
    assert dialogue == derived("phi3")
    for messages in conversations(system=True):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert dialogue.render(messages) == wanted
