"""Tests that @huggingface/jinja, with which engines like LM Studio render templates, gives the same bytes as training.

npm fetches the package once, by version and hash, into pytest's cache; without npm and node the tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from aegis.data.records import Chat
from tests.data.npm import npm_package
from tests.data.test_real_tokenizers import EXPECTED, ROWS

VERSION = "0.5.11"
SHA512 = "YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ=="
RENDERING = """
const { Template } = await import(process.argv[1]);
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { source, contexts } = JSON.parse(Buffer.concat(chunks).toString("utf8"));
const template = new Template(source);
process.stdout.write(JSON.stringify(contexts.map((context) => template.render(context))));
"""
CHATS = {name: sorted({row for family, row in EXPECTED if family == name}) for name, _ in EXPECTED}

Render = Callable[[str, list[dict[str, Any]]], list[str]]


@pytest.fixture(scope="session")
def render(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Render:
    kept = getattr(request.config, "cache", None)
    cache = kept.mkdir("javascript") if kept else tmp_path_factory.mktemp("javascript")
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    module = npm_package("@huggingface/jinja", VERSION, cache / f"jinja-{VERSION}", SHA512) / "dist" / "index.js"

    def rendered(source: str, contexts: list[dict[str, Any]]) -> list[str]:
        done = subprocess.run(
            [node, "--input-type=module", "-e", RENDERING, str(module)],
            input=json.dumps({"source": source, "contexts": contexts}).encode(),
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return list(json.loads(done.stdout))

    return rendered


def both(render: Render, tokenizer: Any, chats: list[Chat]) -> tuple[list[str], list[str]]:
    """Return what transformers and JavaScript make of each chat, complete and up to the model's turn."""
    ours, contexts = [], []
    for chat in chats:
        complete = [{**message, "content": message["content"] or ""} for message in chat.messages]
        for prompt, messages in ((False, complete), (True, complete[:-1])):
            given: dict[str, Any] = {"add_generation_prompt": prompt, **chat.variables}
            ours.append(tokenizer.apply_chat_template(messages, tools=chat.tools, tokenize=False, **given))
            tokens = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
            contexts.append({"messages": messages, "tools": chat.tools, **tokens, **given})
    return ours, render(tokenizer.chat_template, contexts)


@pytest.mark.parametrize("family", CHATS)
def test_the_templates_of_proven_families_give_the_same_text(
    render: Render, real: Callable[[str], Any], family: str
) -> None:
    chats = [row for name in CHATS[family] if isinstance(row := ROWS[name], Chat)]
    ours, theirs = both(render, real(family), chats)
    assert theirs == ours
    assert all(ours)


def test_the_demos_template_gives_the_same_text(render: Render, quick_base: Path) -> None:
    """The control is another template, whose text must differ."""
    tokenizer = AutoTokenizer.from_pretrained(quick_base)
    chats = [row for name in ("multi-line", "thought") if isinstance(row := ROWS[name], Chat)]
    ours, theirs = both(render, tokenizer, chats)
    assert theirs == ours
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|> ")
    assert both(render, tokenizer, chats)[0] != theirs
