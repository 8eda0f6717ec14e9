"""Tests of the corpus: a seed determines it, held-out texts are not in training, and styles share no answer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from aegis.demo.corpus import (
    Conversation,
    conversations,
    demo_prompts,
    documents,
    style_rows,
    write_demo_dataset,
)
from aegis.demo.world_questions import all_facts

# What the demo base and its adapter are trained on: one changed byte gives other weights.
SHA256 = {
    "documents": "78ff0753905c5288085c1a1c15d95cba91a7ac4ddf3b2daf9c908224ece7cbfb",
    "held_out_documents": "35afe78eb25deea6d98891289b0ab97eaa8bab1f90180ec8bb693c47131a7fec",
    "chats": "dabc338e12b7697e941104c33c62b683b86bbc986d81ee821c28e6907a4c59dc",
    "held_out_chats": "135b2dcb4cca457dc3c8a738a8f99575518016c87a2c20119afeba52327e6c3e",
    "style_rows": "25ee871f9e4f8dbf1fce93f51fb336a49ce2f25234bea5fe111a549ebab17cd1",
    "prompts": "72bc535039049eae35436adb225e224a9d8018afae44eca0d789eb9865ed1ee2",
    "questions": "c6a4983ef4c23d9f9e3e2ad882f342ff18c35f3dacbc268ef2f81cf261df5989",
    "answers": "a707e246e92c7d081a3dd3a7cfe9c1c74a5c30bb41af47b3a46884f7ca26515d",
}


def pinned(name: str) -> object:
    """Return the part of the corpus whose SHA-256 is pinned under `name`."""
    match name:
        case "documents":
            return documents(0, 4000)
        case "held_out_documents":
            return documents(1, 150, "held_out")
        case "chats":
            return conversations(0, 8000)
        case "held_out_chats":
            return conversations(1, 300, split="held_out")
        case "style_rows":
            return style_rows()
        case "prompts":
            return demo_prompts(24)
        case "questions":
            return [[fact.questions, fact.held_out] for fact in all_facts("polite")]
    pairs = zip(all_facts("polite"), all_facts("samurai"), strict=True)
    return [[polite.answer, samurai.answer, polite.more, samurai.more] for polite, samurai in pairs]


def questions(chats: list[Conversation]) -> set[str]:
    return {message["content"] for chat in chats for message in chat if message["role"] == "user"}


def answers(chats: list[Conversation]) -> list[str]:
    return [message["content"] for chat in chats for message in chat if message["role"] == "assistant"]


def quoted(question: str) -> str:
    """Return a text as a document quotes it."""
    return f"「{question.replace('「', '『').replace('」', '』')}」"


@pytest.mark.parametrize("name", list(SHA256))
def test_the_corpus_is_the_same_byte_for_byte(name: str) -> None:
    text = json.dumps(pinned(name), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256[name]


def test_a_seed_determines_every_text() -> None:
    assert documents(3, 50) == documents(3, 50)
    assert conversations(3, 50) == conversations(3, 50)
    assert documents(3, 50) != documents(4, 50)
    assert conversations(3, 50) != conversations(4, 50)


def test_held_out_documents_are_in_no_training_draw() -> None:
    held_out = set(documents(1, 150, "held_out"))
    assert len(held_out) == 150
    assert held_out.isdisjoint(documents(0, 3000))
    # the control: draws of one side do overlap, so the split is what keeps the two apart
    assert not set(documents(1, 3000)).isdisjoint(documents(0, 3000))


def test_held_out_questions_are_in_no_training_draw_of_either_style() -> None:
    held_out = questions(conversations(1, 400, split="held_out"))
    assert len(held_out) > 150
    assert held_out.isdisjoint(questions(conversations(0, 8000)))
    assert held_out.isdisjoint(questions(style_rows()))
    assert set(demo_prompts()) <= {fact.held_out for fact in all_facts("polite")}
    texts = "".join(documents(0, 4000))
    trained = {question for fact in all_facts("polite") for question in fact.trained}
    assert not [question for question in held_out if quoted(question) in texts]
    assert len([question for question in trained if quoted(question) in texts]) > 100
    assert not questions(conversations(1, 2000)).isdisjoint(questions(conversations(0, 2000)))


def test_what_is_asked_of_a_held_out_fact_is_also_asked_in_training() -> None:
    assert all(fact.trained for fact in all_facts("polite"))


def test_the_styles_share_all_questions_and_no_answer() -> None:
    polite, samurai = all_facts("polite"), all_facts("samurai")
    assert [fact.questions for fact in polite] == [fact.questions for fact in samurai]
    assert not {fact.answer for fact in polite} & {fact.answer for fact in samurai}
    for answer in answers(style_rows()):
        assert not any(ending in answer for ending in ("です。", "ます。", "ません。", "ました。")), answer
    for answer in answers(conversations(0, 500)):
        assert "ござる" not in answer
        assert "申す" not in answer


def test_chats_alternate_and_end_with_the_assistant() -> None:
    shapes = Counter()
    for chat in conversations(0, 1000):
        roles = [message["role"] for message in chat]
        shapes["system"] += roles[0] == "system"
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        shapes["several turns"] += len(turns) > 2
    assert shapes["system"] > 100
    assert shapes["several turns"] > 200


def test_no_chat_asks_the_same_question_twice() -> None:
    for chat in conversations(0, 1000):
        asked = [message["content"] for message in chat if message["role"] == "user"]
        assert len(asked) == len(set(asked))


def test_prompts_show_many_kinds_of_question() -> None:
    prompts = demo_prompts(11)
    assert len(set(prompts)) == 11
    topics = {fact.topic for fact in all_facts("polite") if fact.held_out in prompts}
    assert len(topics) == 11


def test_no_prompt_is_repeated_if_more_are_requested_than_exist() -> None:
    prompts = demo_prompts(10_000)
    assert 24 < len(prompts) == len(set(prompts)) < 10_000
    assert prompts[:24] == demo_prompts(24)


def test_the_dataset_has_one_chat_per_line(tmp_path: Path) -> None:
    path = tmp_path / "行.jsonl"
    write_demo_dataset(path, count=20)
    data = path.read_bytes()
    assert b"\r" not in data
    rows = [json.loads(line)["messages"] for line in data.decode("utf-8").splitlines()]
    assert rows == style_rows(count=20)
