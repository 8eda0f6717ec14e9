"""Chat formats of the families, written here as templates, and conversations to render with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from aegis.llama_cpp.ollama.probing import DATED

Conversation = list[dict[str, str]]

PHI3 = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}{{ '<|system|>\n' + m['content'] + "
    "'<|end|>\n' }}{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN25 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% set words = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in words %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ words + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA32 = (
    "{{ bos_token }}{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}"
    "{% set today = '26 Jul 2024' %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + today + "
    "'\n\n' + system + '<|eot_id|>' }}{% for m in rest %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}"
)
MISTRAL_V3 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% endif %}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V7 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% elif m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "(first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# no family's: a system prompt that would close whatever quotes it stands in
QUOTING = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{% raw %}<|im_start|>system\n"
    'Say """{{ .Secret }}""" \\n `x` "<|im_end|>\n{% endraw %}{% endif %}'
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A chat format: its template, its special tokens, whether it has a system message, and what Go cannot do of it."""

    template: str
    bos: str | None
    eos: str
    tags: tuple[str, ...]
    system: bool = True
    departures: tuple[str, ...] = ()


LEFT_OUT = "a system message is left out"
TRIMS = "white space round a message"
THINKS = "the <think> part"
LATER = "a system message after the first"
_LLAMA = ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"))
_CHATML = (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"))
FAMILIES = {
    "phi3": Family(PHI3, None, "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "qwen2.5": Family(QWEN25, *_CHATML),
    "qwen3": Family(QWEN3, *_CHATML, departures=(THINKS,)),
    "llama3": Family(LLAMA3, *_LLAMA, departures=(TRIMS,)),
    "llama3.2": Family(LLAMA32, *_LLAMA, departures=(TRIMS, LATER, DATED)),
    "mistral": Family(MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]"), system=False, departures=(LEFT_OUT,)),
    "mistral-v3": Family(MISTRAL_V3, "<s>", "</s>", ("[INST]", "[/INST]"), departures=(TRIMS,)),
    "mistral-v7": Family(MISTRAL_V7, "<s>", "</s>", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
    "gemma": Family(
        GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), system=False, departures=(LEFT_OUT, TRIMS)
    ),
    "gemma3": Family(GEMMA3, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), departures=(TRIMS,)),
}

SAID = (
    "こんにちは。",
    "Hi",
    'quotes " and \\ and {{ braces }} and """',
    "two\nlines\n\n and more",
    "<|not a tag|>",
    "`{{ .Content }}` {{- end }} %s \\n",
    "全角\u3000空白と絵文字😀",
    "x" * 500,
)


def conversation(turns: int, *, system: bool, shift: int = 0) -> Conversation:
    """Return `turns` questions with their answers, and a last question."""
    roles = (["system"] if system else []) + ["user", "assistant"] * turns + ["user"]
    return [{"role": role, "content": SAID[(n + shift) % len(SAID)]} for n, role in enumerate(roles)]


def conversations(*, system: bool) -> list[Conversation]:
    """Return over thirty conversations of zero to four turns, with every text in every position."""
    kinds = (False, True) if system else (False,)
    return [conversation(t, system=s, shift=n) for t, n, s in product(range(5), range(len(SAID)), kinds)]


@cache
def tokenizer_for(family: Family) -> Any:
    """Return a transformers tokenizer of single characters with the family's special tokens and template."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokens = [token for token in (family.bos, family.eos, *family.tags) if token]
    core.add_special_tokens(tokens)
    if family.bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, core.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family.bos, eos_token=family.eos, chat_template=family.template
    )


def rendered(family: Family, messages: Sequence[dict[str, str]]) -> str:
    """Return transformers' text of a conversation, without the begin token that is added to it later."""
    # Go's day is the template's own for engines without a calendar
    template = family.template.replace("strftime_now is defined", "false") if DATED in family.departures else None
    text: str = tokenizer_for(family).apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, chat_template=template
    )
    return text.removeprefix(family.bos or "")
