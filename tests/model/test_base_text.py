"""Tests of the text that a base writes: its beginning and end, its probabilities, and what is cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aegis.model.base import load_tokenizer
from aegis.model.base_text import sample, without_loop, write_texts
from aegis.model.load import load_base
from aegis.model.text_openings import Opening, end_tokens, openings
from tests.conftest import MakeRandom

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(quick_base: Path) -> Any:
    return load_tokenizer(quick_base)


@pytest.fixture(scope="module")
def model(quick_base: Path) -> Any:
    return load_base(quick_base, "16bit", CPU).eval()


def draw(model: Any, tokenizer: Any, opening: Opening, *, seed: int = 0, rows: int = 8, **more: Any) -> list[Any]:
    settings: dict[str, Any] = {"length": 40, "ends": end_tokens(model, tokenizer), "known": len(tokenizer)} | more
    return sample(model, opening, rows=rows, generator=torch.Generator().manual_seed(seed), **settings)


def test_a_chat_begins_at_the_users_turn_and_a_document_at_the_beginning_of_text(tokenizer: Any) -> None:
    chat, document = openings(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(chat.ids)) == ["<|user|>"]
    assert tokenizer.convert_ids_to_tokens(list(chat.follow)) == ["<|end|>", "<|assistant|>"]
    assert document == Opening((tokenizer.bos_token_id,))


def test_without_a_usable_template_the_base_writes_documents(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for template in (None, "{{ raise_exception('no') }}", "nothing of the user's"):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        assert openings(tokenizer) == [Opening((tokenizer.bos_token_id,))]


def test_a_question_is_followed_by_the_template_and_an_answer(model: Any, tokenizer: Any) -> None:
    """Where the base ends its question, `<|end|><|assistant|>` follows; its next end token ends the text."""
    chat = openings(tokenizer)[0]
    ends, (end, assistant) = end_tokens(model, tokenizer), chat.follow
    found = [(text.tolist(), ended) for text, ended in draw(model, tokenizer, chat, rows=16, length=80)]
    assert sum(ended for _, ended in found) > 8
    for text, ended in found:
        closed = next(place for place, token in enumerate(text) if token in ends)
        assert text[closed : closed + 2] == [end, assistant]
        assert (text[-1] in ends) == ended
        assert not ends.intersection(text[closed + 2 : -1])


def test_the_seed_decides_what_is_written(model: Any, tokenizer: Any) -> None:
    chat = openings(tokenizer)[0]
    one, same, other = ([text.tolist() for text, _ in draw(model, tokenizer, chat, seed=s)] for s in (1, 1, 2))
    assert one == same != other
    assert len({tuple(text) for text in one}) == len(one)


def test_tokens_are_sampled_with_the_bases_own_probabilities(model: Any, tokenizer: Any) -> None:
    """4,000 first tokens against softmax of the logits at temperature 1; those of temperature 2 miss."""
    start = Opening((tokenizer.bos_token_id,))
    first = [int(text[1]) for text, _ in draw(model, tokenizer, start, rows=4000, length=2)]
    found = torch.bincount(torch.tensor(first), minlength=model.config.vocab_size) / 4000
    logits = model(input_ids=torch.tensor([start.ids])).logits[0, -1].float()
    logits[len(tokenizer) :] = -torch.inf
    assert (found - logits.softmax(-1)).abs().sum() < 0.7 * (found - (logits / 2).softmax(-1)).abs().sum()
    assert (found - logits.softmax(-1)).abs().max() < 0.03


def test_a_static_cache_gives_the_same_text_as_no_cache(make_random: MakeRandom, tokenizer: Any) -> None:
    """Greedy by a vanishing temperature: every token of a text is the argmax of a plain forward pass over it."""
    model = load_base(make_random("llama"), "16bit", CPU).eval()
    head = model.get_output_embeddings()
    head.weight.data.mul_(1e4)
    ((text, _),) = draw(model, tokenizer, Opening((1,)), rows=1, ends=frozenset(), known=model.config.vocab_size)
    logits = model(input_ids=torch.from_numpy(text[None].astype(np.int64))).logits[0]
    assert text[1:].tolist() == logits[:-1].argmax(-1).tolist()


def test_ids_without_a_token_are_never_written(model: Any, tokenizer: Any) -> None:
    known = 50
    written = draw(model, tokenizer, Opening((1,)), rows=16, ends=frozenset(), known=known)
    assert max(int(text.max()) for text, _ in written) < known


def test_writing_goes_on_until_the_windows_are_full(model: Any, tokenizer: Any) -> None:
    *_, last = write_texts(model, tokenizer, openings(tokenizer)[0], windows=3, max_length=48, seed=0)
    assert last.missing(3, 48) == 0
    assert last.sampled >= len(last.texts) > 3
    assert last.sampled == len(last.texts) + last.too_short
    assert len({text.tobytes() for text in last.texts}) == len(last.texts)


def test_a_base_that_writes_nothing_is_given_up(tokenizer: Any) -> None:
    """It ends every text at once: there is no text, and no endless loop."""

    class Mute:
        device, dtype = CPU, torch.float32
        generation_config = SimpleNamespace(eos_token_id=[2])

        def __init__(self) -> None:
            from transformers import LlamaConfig

            self.config = LlamaConfig(num_hidden_layers=1, eos_token_id=2)

        def get_output_embeddings(self) -> torch.nn.Module:
            return torch.nn.Linear(1, 1)

        def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Any:
            logits = torch.full((*input_ids.shape, len(tokenizer)), -100.0)
            logits[..., 2] = 0
            return SimpleNamespace(logits=logits)

    *_, last = write_texts(Mute(), tokenizer, Opening((1,), (2, 5)), windows=2, max_length=32, seed=0)
    assert last.texts == []
    assert last.too_short == last.sampled > 0


def test_a_loop_is_cut_after_its_first_repetition() -> None:
    rng = np.random.default_rng(0)
    start, piece = rng.integers(0, 1000, 30), rng.integers(0, 1000, 7)
    text = np.concatenate([start, np.tile(piece, 9)]).astype(np.int32)
    assert without_loop(text).tolist() == [*start, *piece]
    assert len(without_loop(np.full(100, 7, np.int32))) == 1


def test_a_refrain_is_not_cut_as_a_loop() -> None:
    """People do repeat a line or a word."""
    rng = np.random.default_rng(0)
    line = rng.integers(0, 1000, 40).astype(np.int32)
    for text in (np.concatenate([line, line]), np.concatenate([line, np.full(6, 3, np.int32), line[:20]])):
        assert len(without_loop(text)) == len(text)
