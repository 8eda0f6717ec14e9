"""A chat template taken apart gives the same text put together again, or is not taken apart at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2.sandbox
import pytest

from aegis.model.base import load_tokenizer
from aegis.report.dialogue import Dialogue, Message, dialogue_of, special_texts, take_apart

PHI3 = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}{{ '<|system|>\n' + m['content'] + "
    "'<|end|>\n' }}{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_MERGING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "(first if loop.first else '') + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}"
)
NUMBERED = (
    "{% for m in messages %}{{ loop.index }}. {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = "{{ '<|user|>\n' + messages[-1]['content'] + '<|end|>\n<|assistant|>\n' }}"
SHOUTING = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }} ({{ m['content'] | length }})\n{% endfor %}"
)

SPECIALS = {
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "gemma-merging": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]"],
}
TEMPLATES = {
    "phi3": (PHI3, None, "<|endoftext|>"),
    "chatml": (CHATML, None, "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": (GEMMA, "<bos>", "<eos>"),
    "gemma-merging": (GEMMA_MERGING, "<bos>", "<eos>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
}
HAS_SYSTEM = {"phi3", "chatml", "llama3"}

Conversation = list[Message]
SAID = [
    "こんにちは。",
    "Hi",
    'quotes " and \\ and {{ braces }} and """',
    "two\nlines\n\n and more",
    "<|not a tag|>",
    "x" * 500,
]


def conversation(turns: int, *, system: bool) -> Conversation:
    roles = (["system"] if system else []) + ["user", "assistant"] * turns + ["user"]
    return [{"role": role, "content": SAID[n % len(SAID)]} for n, role in enumerate(roles)]


def renderer(template: str, bos: str | None, eos: str) -> Callable[[Sequence[Message], bool], str]:
    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    compiled = environment.from_string(template)

    def render(messages: Sequence[Message], cue: bool) -> str:
        return compiled.render(
            messages=messages, add_generation_prompt=cue, bos_token=bos or "", eos_token=eos, raise_exception=refuse
        )

    return render


def derived(name: str) -> tuple[Dialogue | None, Callable[[Sequence[Message], bool], str]]:
    template, bos, eos = TEMPLATES[name]
    render = renderer(template, bos, eos)
    return take_apart(render, SPECIALS[name], bos), render


@pytest.mark.parametrize("name", TEMPLATES)
def test_put_together_again_it_is_the_templates_text(name: str) -> None:
    """Several lengths, with and without a system message, contents with quotes, braces, newlines and Japanese."""
    dialogue, render = derived(name)
    assert dialogue is not None
    assert (dialogue.system is not None) == (name in HAS_SYSTEM)
    bos = TEMPLATES[name][1] or ""
    for turns in range(4):
        for system in {False, name in HAS_SYSTEM}:
            messages = conversation(turns, system=system)
            assert bos + dialogue.render(messages) == render(messages, True)


def test_the_parts_of_phi3() -> None:
    assert derived("phi3")[0] == Dialogue(
        opening="",
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        assistant=("<|assistant|>\n", "<|end|>\n"),
        cue="<|assistant|>\n",
    )


def test_a_default_system_prompt_is_the_opening() -> None:
    dialogue, _ = derived("chatml")
    assert dialogue is not None
    assert dialogue.opening == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def test_a_cut_never_goes_through_a_token() -> None:
    """user and assistant tags that begin alike: cut letter by letter, '<|a' would stay with the user's part."""
    dialogue, _ = derived("llama3")
    assert dialogue is not None
    assert dialogue.user[0] == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert dialogue.cue == "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.mark.parametrize("template", [NUMBERED, FORGETFUL, SHOUTING, "", "text", "{{ messages[7]['content'] }}"])
def test_what_fixed_text_does_not_describe_is_none(template: str) -> None:
    assert take_apart(renderer(template, None, ""), [], None) is None


def test_a_template_that_raises_is_none() -> None:
    def failing(_messages: Sequence[Message], _cue: bool) -> str:
        raise ZeroDivisionError

    assert take_apart(failing, [], None) is None


def test_no_place_for_a_system_message() -> None:
    dialogue, _ = derived("mistral")
    assert dialogue is not None
    with pytest.raises(ValueError, match="no system message"):
        dialogue.render([{"role": "system", "content": "x"}])


def test_a_real_tokenizer(quick_base: Path) -> None:
    """The quick base's own, through transformers: the same text for the same messages."""
    tokenizer = load_tokenizer(quick_base)
    dialogue = dialogue_of(tokenizer)
    assert dialogue is not None
    assert set(special_texts(tokenizer)) >= set(SPECIALS["phi3"])
    for turns in range(3):
        messages = conversation(turns, system=turns > 0)
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert dialogue.render(messages) == wanted
    tokenizer.chat_template = None
    assert dialogue_of(tokenizer) is None
