"""Tiny byte-level BPE tokenizers, and a converter that supports them.

llama.cpp's converter identifies a byte-level tokenizer by a hash of its ids for a fixed text, so it refuses one that
was
trained here. A copy of its tree gets the hash, as convert_hf_to_gguf_update.py adds new tokenizers.
"""

from __future__ import annotations

import ast
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from aegis.model.base import TOKENIZER_FILES
from tests.llama_cpp.conftest import LINES

Pre = Literal["qwen2", "llama-bpe", "phi-2"]

PIECES = 512
SPECIAL = ("<|endoftext|>", "<|begin_of_text|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPLITS: dict[Pre, str] = {
    # as in the families' tokenizer.json
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "phi-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def write_tokenizer(folder: Path, pre: Pre) -> None:
    """Write a tokenizer of PIECES tokens and the special ones; it replaces any other in the folder."""
    from transformers import PreTrainedTokenizerFast

    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained(pre),
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1] if pre == "llama-bpe" else None,
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(folder)


def tree_that_knows(tree: Path, copy: Path) -> Path:
    """Copy the converter's tree and add these tokenizers' hashes to its table."""
    shutil.copytree(tree, copy)
    source = copy / "conversion" / "base.py"
    text = source.read_text(encoding="utf-8")
    found = re.search(r"^        chktxt = ('.*')$", text, re.MULTILINE)
    assert found
    checked: str = ast.literal_eval(found[1])
    known = "        res = None\n"
    assert text.count(known) == 1
    for pre in _SPLITS:
        hashed = sha256(str(_trained(pre).encode(checked).ids).encode()).hexdigest()
        text = text.replace(known, f'{known}        if chkhsh == "{hashed}":\n            res = "{pre}"\n')
    source.write_text(text, encoding="utf-8")
    return copy


def _trained(pre: Pre) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(LINES.split("\n"), trainer)
    assert bpe.get_vocab_size() == PIECES
    bpe.add_special_tokens(list(SPECIAL))
    if pre == "llama-bpe":
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[1]} $A", pair=f"{SPECIAL[1]} $A $B", special_tokens=[(SPECIAL[1], PIECES + 1)]
        )
    return bpe
