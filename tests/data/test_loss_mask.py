"""Tests that bisection finds the same tokens as a search through the positions of all tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from aegis.data.loss_mask import Turn, first_reaching, tokens_of
from aegis.errors import DataError
from tests.data.conftest import TEXTS

END = "<|end|>"
TAG = "<|assistant|>"
# characters of several tokens, tokens of several characters, white space that a tag or a normalizer swallows
BITS = [
    "Hello",
    " ",
    "  ",
    "\n",
    "\n\n",
    "こんにちは",
    "😀",
    "👨‍👩‍👧",
    "e\u0301",
    "ﬁ",
    "ﷺ",
    "\u3000",
    "A\u0308\u0323",
    END,
]
ROUNDS = 200


def trained(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizer
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False))
    return core


@pytest.fixture(scope="module", params=["bytes", "metaspace", "prepended", "rewritten", "phi"])
def core(request: pytest.FixtureRequest, byte_level: Callable[..., Any], phi: Any) -> Tokenizer:
    made: Tokenizer = {
        "bytes": lambda: Tokenizer.from_str(byte_level(None).backend_tokenizer.to_str()),
        "metaspace": lambda: trained(None, pre_tokenizers.Metaspace(prepend_scheme="first")),
        "prepended": lambda: trained(
            normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
            None,
        ),
        "rewritten": lambda: trained(
            normalizers.Sequence([normalizers.NFKC(), normalizers.NFD(), normalizers.StripAccents()]),
            pre_tokenizers.Metaspace(),
        ),
        "phi": lambda: Tokenizer.from_str(phi.backend_tokenizer.to_str()),
    }[request.param]()
    made.add_special_tokens([AddedToken(TAG, rstrip=True), AddedToken(END)])
    return made


def texts(seed: int) -> Iterator[tuple[str, list[Turn]]]:
    """Yield texts of tagged turns, with or without an end, and the positions of the turns."""
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        text, places = "", list[tuple[int, int]]()
        for _ in range(chance.randint(1, 4)):
            text += "".join(chance.choices(BITS[:-1], k=chance.randint(0, 6))) + TAG + chance.choice(["", "\n"])
            start = len(text)
            text += "".join(chance.choices(BITS, [1] * (len(BITS) - 1) + [0.1], k=chance.randint(1, 9)))
            places.append((start, len(text)))
            text += END * (chance.random() > 0.02) + chance.choice(["", "\n", " "])
        limits = [*(start for start, _ in places[1:]), len(text)]
        yield text, [Turn(start, end, limit) for (start, end), limit in zip(places, limits, strict=True)]


def by_all_places(encoding: Any, turns: list[Turn], enders: NDArray[np.bool_]) -> list[slice] | None:
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    found = []
    for turn in turns:
        inside = (starts >= turn.start) & (starts < turn.limit)
        ending = np.flatnonzero(inside & (ends > turn.content_end) & enders)
        if not len(ending):
            return None
        found.append(slice(int(np.flatnonzero(inside)[0]), int(ending[0]) + 1))
        assert inside[found[-1]].all()
    return found


def test_turns_equal_those_of_a_search_at_every_position(core: Tokenizer) -> None:
    ended = 0
    for text, turns in texts(1):
        encoding = core.encode(text, add_special_tokens=False)
        enders = np.array(encoding.ids) == core.token_to_id(END)
        expected = by_all_places(encoding, turns, enders)
        if expected is None:
            with pytest.raises(DataError, match="no token that ends"):
                list(tokens_of(turns, encoding, np.flatnonzero(enders).tolist()))
            continue
        assert list(tokens_of(turns, encoding, np.flatnonzero(enders).tolist())) == expected
        ended += 1
    assert ROUNDS / 2 < ended < ROUNDS


def test_a_token_from_before_the_turn_does_not_end_it() -> None:
    """An added token may take in the white space on both sides, and so all of an answer and more."""
    places = [(0, 3), (3, 9), (9, 12)]

    class Placed:
        token_to_chars = staticmethod(places.__getitem__)
        __len__ = staticmethod(places.__len__)

    assert list(tokens_of([Turn(4, 8, 12)], Placed(), [1, 2])) == [slice(2, 3)]


def test_a_completion_equals_that_of_a_search_at_every_position(core: Tokenizer) -> None:
    chance = random.Random(2)
    for text, _ in texts(3):
        encoding = core.encode(text, add_special_tokens=False)
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        character = chance.randint(0, len(text) + 1)
        expected = (starts >= character) | (ends > character)
        first = first_reaching(encoding, character)
        assert (~expected[:first]).all()
        assert expected[first:].all()
