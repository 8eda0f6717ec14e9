"""Checks a GGUF against the folder that it was made from."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aegis import progress
from aegis.background import stop_if_asked
from aegis.errors import IntegrityError, UsageError
from aegis.llama_cpp import GgufFile, adds_begin_token, fallback_tensors, read_importance
from aegis.messages import Bilingual, bilingual, phrase
from aegis.model.base import TOKENIZER_FILES
from aegis.model.context import original_context
from aegis.model.shards import HEAD, HEAD_BIAS, ShardSet, TensorEntry
from aegis.runs.disk import gguf_bytes
from aegis.runs.manifest import MANIFEST, file_sha256, read_manifest, verify_file

_SLAB_BYTES = 16 << 20
_CACHED = 1 << 20
"""Float16 values per check: each is read twice, so they must fit in the processor's cache."""


def files_bytes(model: Path, shards: ShardSet, quants: Sequence[str]) -> int:
    """Return the upper bound of `gguf_bytes` on the bytes of one GGUF per type, made from a folder."""
    return gguf_bytes((entry.shape for entry in shards.entries.values()), vocabulary_bytes(model), quants)


def vocabulary_bytes(folder: Path) -> int:
    """Return the size of a folder's tokenizer files."""
    return sum((folder / name).stat().st_size for name in TOKENIZER_FILES if (folder / name).is_file())


def importance_sha256(path: Path, model_digest: str) -> str:
    """Check an importance matrix, and return its sha256.

    Args:
        path: the matrix. If quantize-study published it, the manifest beside it names its model; otherwise the model
            cannot be checked.
        model_digest: the digest of the merged folder's files, as in a manifest's inputs.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is not an importance matrix, changed since it was published, or belongs to another model.
    """
    if not path.is_file():
        raise UsageError("gguf.no_imatrix", path=path)
    read_importance(path)
    if not verify_file(path):
        progress.warn(phrase("gguf.unnamed_imatrix", manifest=MANIFEST, path=path))
    elif read_manifest(path.parent).inputs.get("model") != model_digest:
        raise IntegrityError("gguf.other_imatrix", path=path, manifest=MANIFEST)
    return file_sha256(path)


def check_f16(
    path: Path, shards: ShardSet, source: dict[str, Any], tokenizer: Any, stop: threading.Event | None = None
) -> None:
    """Compare the f16 GGUF with the folder that it was made from.

    Args:
        source: the folder's config.json.
        stop: set by another thread to end this between two tensors.

    Raises:
        IntegrityError: they differ; the message lists every difference.
        InterruptedError: `stop` was set.
    """
    wrong: list[Bilingual] = []
    with GgufFile(path) as gguf:
        head = shards.entries.get(HEAD)
        if head is not None and "output.weight" not in gguf.tensors:
            wrong.append(bilingual("gguf.head_missing"))
        elif head is not None and not same_as_f16(gguf.tensor("output.weight"), head):
            wrong.append(bilingual("gguf.head_differs", head=HEAD))
        wrong += _head_bias(gguf, shards)
        rows, tokens = _rows(gguf, "token_embd.weight"), gguf.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and rows != len(tokens):
            wrong.append(bilingual("gguf.cut", rows=rows, tokens=len(tokens)))
        wrong += [bilingual("gguf.not_finite", name=name) for name in _not_finite(gguf, stop)]
        template = tokenizer.chat_template
        if isinstance(template, dict):  # several templates, by name
            template = template.get("default")
        if template and gguf.metadata.get("tokenizer.chat_template") != template:
            wrong.append(bilingual("gguf.other_template"))
        adds_bos = adds_begin_token(tokenizer)
        # without the key, llama.cpp adds the token for SentencePiece; for others it depends on the pre-tokenizer
        default = gguf.metadata.get("tokenizer.ggml.model") == "llama" or adds_bos
        if bool(gguf.metadata.get("tokenizer.ggml.add_bos_token", default)) != adds_bos:
            wrong.append(bilingual("gguf.other_bos", theirs=not adds_bos, ours=adds_bos))
        wrong += _rope(gguf, source)
    if wrong:
        raise IntegrityError("gguf.differs", wrong=Bilingual.joined("\n", wrong))


def check_pieces(path: Path, tokenizer: Any) -> int:
    """Compare a GGUF's added and special tokens with the tokenizer's.

    Returns:
        The number of its tokens.

    Raises:
        IntegrityError: naming the first that differs.
    """
    with GgufFile(path) as gguf:
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list):
            raise IntegrityError("structure.no_vocabulary", f16_name=path.name)
        for text, token in sorted(tokenizer.get_added_vocab().items(), key=lambda pair: pair[1]):
            if token >= len(tokens) or tokens[token] != text:
                found = tokens[token] if token < len(tokens) else bilingual("structure.nothing")
                raise IntegrityError("structure.other_piece", token=token, found=found, f16_name=path.name, text=text)
        for key, wanted in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
            found_id = gguf.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if wanted is not None and found_id != wanted:
                raise IntegrityError(
                    "structure.other_special_token", key=key, found_id=found_id, f16_name=path.name, wanted=wanted
                )
    return len(tokens)


def _head_bias(gguf: GgufFile, shards: ShardSet) -> list[Bilingual]:
    """Return what is wrong with the LM head's bias: the folder's and the GGUF's (float32) must be equal."""
    bias, name = shards.entries.get(HEAD_BIAS), "output.bias"
    if bias is None:
        return [bilingual("gguf.needless_bias", name=name)] if name in gguf.tensors else []
    if name not in gguf.tensors:
        return [bilingual("gguf.bias_missing", name=name)]
    same = np.array_equal(gguf.tensor(name).astype(np.float32), bias.read().float().numpy())
    return [] if same else [bilingual("gguf.bias_differs", name=name, bias=HEAD_BIAS)]


def _rope(gguf: GgufFile, source: dict[str, Any]) -> list[Bilingual]:
    """Return what is wrong with LongRoPE's factors, if the folder has them."""
    scaling = source.get("rope_scaling") or source.get("rope_parameters") or {}
    if not isinstance(scaling, dict) or "long_factor" not in scaling:
        return []
    wrong = []
    for key, tensor in (("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight")):
        if tensor not in gguf.tensors or not np.array_equal(
            gguf.tensor(tensor).ravel(), np.asarray(scaling[key], np.float32)
        ):
            wrong.append(bilingual("gguf.other_rope", tensor=tensor, key=key))
    factor, expected = gguf.metadata.get("phi3.rope.scaling.attn_factor"), _longrope_attention_factor(source)
    if source["model_type"] == "phi3" and (
        not isinstance(factor, float) or not math.isclose(factor, expected, rel_tol=1e-6)
    ):
        wrong.append(bilingual("gguf.other_rope_scale", factor=factor, expected=expected))
    return wrong


def _rows(gguf: GgufFile, name: str) -> int:
    return gguf.tensors[name].shape[0] if name in gguf.tensors else 0


def same_as_f16(stored: NDArray[np.generic], entry: TensorEntry) -> bool:
    """Whether a GGUF's tensor equals the shard's tensor cast to float16, bit for bit."""
    if stored.shape != entry.shape or stored.dtype != np.float16:
        return False
    return all(
        np.array_equal(stored[start:stop], entry.read(start, stop).to(torch.float16).numpy())
        for start, stop in entry.slabs(_SLAB_BYTES)
    )


def _not_finite(gguf: GgufFile, stop: threading.Event | None) -> list[str]:
    """Return the names of tensors with values beyond float16's range, which bfloat16 and float32 can have."""
    found = []
    for name, info in gguf.tensors.items():
        stop_if_asked(stop)
        if info.type == "F16":
            bits = gguf.tensor(name).reshape(-1).view(np.uint16)
            if any(_beyond_float16(bits[at : at + _CACHED]) for at in range(0, len(bits), _CACHED)):
                found.append(name)
    return found


def _beyond_float16(bits: NDArray[np.uint16]) -> bool:
    # read as signed integers, the largest is a positive float; as unsigned integers, a negative one
    return bool(bits.view(np.int16).max() >= 0x7C00 or bits.max() >= 0xFC00)


def _longrope_attention_factor(config: dict[str, Any]) -> float:
    """Return √(1 + ln s / ln L), s the context's growth, L its original length (LongRoPE, arXiv:2402.13753, eq. 6)."""
    longest: int = config["max_position_embeddings"]
    original = original_context(config) or longest
    growth = longest / original
    return 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))


def check_quantized(path: Path, quant: str, head_quant: str | None) -> list[str]:
    """Return the tensors that fell back to another type; refuse a fallback without a reason."""
    with GgufFile(path) as gguf:
        fallbacks = fallback_tensors(gguf, quant, output_tensor_type=head_quant)
        if "output.weight" not in gguf.tensors and "token_embd.weight" not in gguf.tensors:
            raise IntegrityError("gguf.no_lm_head", path_name=path.name)
    for info in fallbacks:
        if info.shape[-1] % 256 == 0:
            raise IntegrityError(
                "gguf.odd_type", path_name=path.name, info_name=info.name, info_type=info.type, quant=quant
            )
    if fallbacks:
        progress.warn(
            phrase(
                "gguf.fallbacks",
                quant=quant,
                fallbacks_count=len(fallbacks),
                name=fallbacks[0].name,
                type=fallbacks[0].type,
            )
        )
    return [f"{info.name}: {info.type}" for info in fallbacks]
