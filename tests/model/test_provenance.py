"""Tests of what a model's card keeps of its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aegis.model.base import find_base
from aegis.model.provenance import card_metadata, provenance_of_merge
from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from aegis.soul.file import SoulRecord
from tests.recorded import train_facts


def test_no_path_of_this_machine_reaches_a_card(quick_base: Path, tmp_path: Path) -> None:
    """A card is uploaded. A Hub id stays whole."""
    settings = {
        "base_model": "/home/someone/base",
        "dataset": "/home/someone/mine.jsonl",
        "keep_data": "/home/someone/kept.txt",
        "chat_template": "/home/someone/chat.jinja",
        "max_steps": 500,
        **dict.fromkeys(("batch_size", "gradient_accumulation_steps"), 2),
        "load_in": "4bit",
        "max_length": 64,
    }
    soul = SoulRecord(torch.eye(8).expand(2, 8, 8), 1.618, 3, "0" * 64, True)
    for keep_data, shown in (("/home/someone/kept.txt", "kept.txt"), ("owner/texts", "owner/texts")):
        adapter = tmp_path / shown.replace("/", "-")
        with publishing(adapter, Manifest("train", settings | {"keep_data": keep_data}, {}, train_facts())) as staging:
            (staging.path / "adapter_config.json").write_text("{}")
        found = provenance_of_merge(find_base(str(quick_base)), adapter, soul)
        assert "someone" not in found.model_dump_json()
        assert found.data["dataset"] == "mine.jsonl"
        rest = {name: settings[name] for name in settings if name not in ("base_model", "dataset")}
        assert found.settings == rest | {"keep_data": shown, "chat_template": "chat.jinja"}


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("LICENSE", "LICENSE"),
        ("https://example.org/terms", "https://example.org/terms"),
        ("TERMS", "https://huggingface.co/owner/base/blob/main/TERMS"),
        ("x" * 300, f"https://huggingface.co/owner/base/blob/main/{'x' * 300}"),
    ],
)
def test_a_cards_link_to_its_licence_leads_to_the_base_unless_the_file_is_here(
    tmp_path: Path, link: str, kept: str
) -> None:
    (tmp_path / "LICENSE").write_text("terms\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(f"---\nlicense: other\nlicense_link: {link}\n---\n", encoding="utf-8")
    assert card_metadata(tmp_path, "owner/base")["license_link"] == kept
