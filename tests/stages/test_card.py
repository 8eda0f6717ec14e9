"""Tests that licence and attribution go from the base's folder to the GGUF, byte for byte the same each time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.llama_cpp import GgufFile
from aegis.model.base import Base
from aegis.model.provenance import card_metadata, provenance_of_folder
from aegis.runs.manifest import verify_directory
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from tests.trained import MakeTrained

BASE_CARD = """---
license: apache-2.0
language: [ja, en]
base_model: someone/else
tags: [phi3]
model_name: not-this-name
---
# Whatever
"""


def copied(base: Path, to: Path, **files: str) -> Path:
    shutil.copytree(base, to)
    (to / "README.md").unlink()
    for name, text in files.items():
        (to / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return to


def test_licence_and_metadata_of_the_base_reach_the_gguf(
    quick_base: Path, tmp_path: Path, make_trained: MakeTrained
) -> None:
    """Merged and exported by the real converter, twice: licences, metadata, GGUF keys, the same bytes."""
    base = copied(quick_base, tmp_path / "Phi-Base", README_md=BASE_CARD, LICENSE="the licence", NOTICE_txt="notice")
    trained = make_trained(base)
    written: list[dict[str, bytes]] = []
    for _ in range(2):
        merge(MergeInputs(str(base), trained.adapter), tmp_path / "merged", MergeConfig(), overwrite=True)
        exported = export_gguf(tmp_path / "merged", tmp_path / "gguf", ExportConfig(quant=("Q8_0",)), overwrite=True)
        folders = (tmp_path / "merged", tmp_path / "gguf")
        written.append({str(p): p.read_bytes() for folder in folders for p in folder.iterdir()})
    assert written[0] == written[1]
    for folder in folders:
        assert {"README.md", "LICENSE", "NOTICE.txt"} <= set(verify_directory(folder).files)
        assert (folder / "LICENSE").read_text() == "the licence"
        data = ModelCard.load(folder / "README.md").data
        assert (data.license, data.language) == ("apache-2.0", ["ja", "en"])
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert "`apache-2.0`" in text
        assert "g = 0.83" in text
        assert str(tmp_path) not in text
    # what the converter takes from the card, and what it must not
    with GgufFile(exported.files[0]) as gguf:
        assert gguf.metadata["general.license"] == "apache-2.0"
        assert gguf.metadata["general.languages"] == ["ja", "en"]
        assert gguf.metadata["general.name"] == exported.name
    assert provenance_of_folder(tmp_path / "merged").soul["rotation"] == "so8"


@pytest.mark.parametrize(
    ("files", "hub_id", "found"),
    [
        ({}, None, {}),
        ({"README_md": "# no metadata"}, None, {}),
        ({"README_md": "---\n- a list\n---\n"}, None, {}),
        ({"README_md": "---\nlicense: [mit\n---\n"}, None, {}),
        ({"README_md": "---\nlicense: 5\nlanguage: {a: b}\n---\n"}, None, {}),
        ({"README_md": "---\nlicense: mit\nlanguage: ja\n---\n"}, None, {"license": "mit", "language": "ja"}),
        (
            {"README_md": "---\nlicense: other\nlicense_name: x\nlicense_link: TERMS.md\n---\n"},
            "owner/base",
            {
                "license": "other",
                "license_name": "x",
                "license_link": "https://huggingface.co/owner/base/blob/main/TERMS.md",
            },
        ),
        (
            {"LICENSE": "\n MIT License\n\nCopyright"},
            None,
            {"license": "other", "license_name": "MIT License", "license_link": "LICENSE"},
        ),
    ],
)
def test_the_licence_of_a_base_is_read_from_its_card(
    tmp_path: Path, files: dict[str, str], hub_id: str | None, found: dict[str, Any]
) -> None:
    """Only well-formed values are read; other content of an untrusted card does no harm."""
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text, encoding="utf-8")
    assert card_metadata(tmp_path, hub_id) == found


def test_a_hub_base_is_attributed(
    quick_base: Path, tmp_path: Path, make_trained: MakeTrained, monkeypatch: Any
) -> None:
    """Its id and commit, in the metadata and in the words."""
    trained = make_trained(quick_base)
    base = Base("owner/Phi-Base", quick_base, "f" * 40)
    monkeypatch.setattr("aegis.stages.merge.find_base", lambda *_: base)
    merge(MergeInputs("owner/Phi-Base", trained.adapter), tmp_path / "merged", MergeConfig())
    text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.base_model == "owner/Phi-Base"
    assert "by owner" in text
    assert "f" * 40 in text
