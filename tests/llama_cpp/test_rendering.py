"""Tests that an untrusted chat template is rendered as by its own program, and stopped beyond its bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import DataError
from aegis.llama_cpp import Raised, Runtime, chat_text, chat_texts, rendering
from aegis.llama_cpp.confined import Overdue
from aegis.llama_cpp.rendering import render

CHAT = [{"role": "user", "content": "春は？ <&>"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set box = namespace(x='a') %}{% for i in range(64) %}{% set box.x = box.x + box.x %}{% endfor %}"
ONE_CALL = "{% set x = 3**(10**8) %}"
ONE_CALL_OF_DATA = "{% set x = 3**(messages|length * 10**8) %}"


def test_the_rendered_text_equals_that_of_transformers(quick_base: Path) -> None:
    from aegis.model.base import load_tokenizer

    tokenizer = load_tokenizer(quick_base)
    for prompt in (False, True):
        wanted = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        assert chat_text(tokenizer, CHAT, prompt=prompt) == wanted


def test_functions_filters_and_special_tokens_are_those_of_the_flavour() -> None:
    source = (
        "{{ strftime_now('%Y') | length }}{{ messages | tojson }}{{ bos_token }}{% generation %}x{% endgeneration %}"
    )
    for flavour in ("transformers", "llama.cpp"):
        call = {"messages": CHAT, "bos_token": "<s>", "eos_token": "</s>"}
        wanted = '4[{"role": "user", "content": "春は？ <&>"}]<s>x'
        assert render(flavour, source, [call]) == [wanted]  # type: ignore[arg-type]


def test_an_exception_of_one_chat_does_not_stop_the_others(quick_base: Path) -> None:
    from aegis.model.base import load_tokenizer

    tokenizer = load_tokenizer(quick_base)
    source = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
    raised, text = chat_texts(tokenizer, [CHAT * 2, CHAT], prompt=False, source=source)
    assert raised == Raised("TemplateError", "one at a time")
    assert text == CHAT[0]["content"]
    (raised,) = chat_texts(tokenizer, [CHAT], prompt=False, source="{{ messages[0].content.__class__.__mro__ }}")
    assert isinstance(raised, Raised)
    assert raised.kind == "SecurityError"
    assert raised.error().exit_code == 4


@pytest.mark.parametrize("flavour", ["transformers", "llama.cpp"])
@pytest.mark.parametrize(
    ("source", "keys"),
    [
        (ENDLESS, {"rendering.hangs"}),
        (ONE_CALL, {"rendering.hangs", "rendering.too_large"}),
        (ONE_CALL_OF_DATA, {"rendering.hangs", "rendering.too_large"}),
        (DOUBLING, {"rendering.too_large"}),
        ("{{ 'a' * 10**11 }}", {"rendering.too_large"}),
        ("{% for %}", {"rendering.unusable"}),
    ],
)
def test_a_template_that_does_not_end_or_takes_all_memory_is_refused(
    flavour: Any, source: str, keys: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"messages": CHAT, "bos_token": "", "eos_token": ""}
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.5 if "rendering.hangs" in keys else 60.0)
    with pytest.raises(DataError) as refused:
        render(flavour, source, [call])
    assert refused.value.key in keys
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 60.0)
    assert render(flavour, "honest", [call]) == ["honest"]


def test_a_file_whose_template_cannot_even_be_compiled_is_refused(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jinja computes 3**(10**8) before anything is rendered, and so would the bindings, in this process."""
    data = f16.read_bytes()
    # the same length, so that the file stays whole
    assert data.count(b"{{ '<|assistant|>\n' }}") == 1
    (tmp_path / "x.gguf").write_bytes(data.replace(b"{{ '<|assistant|>\n' }}", b"{{ 3**(10**8)       }}"))
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.5)
    with pytest.raises(DataError) as refused:
        Runtime(tmp_path / "x.gguf", n_ctx=64, threads=1)
    assert isinstance(refused.value.__cause__, Overdue)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_a_process_that_waits_for_a_template(tmp_path: Path) -> None:
    script = tmp_path / "renders.py"
    script.write_text(
        "from aegis.llama_cpp.rendering import render\n"
        "render('llama.cpp', 'honest', [])\n"
        "print('now', flush=True)\n"
        f"render('llama.cpp', {ONE_CALL!r}, [])\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
