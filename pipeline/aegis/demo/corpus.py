"""The demo's corpus: documents and chats to pretrain on, chats in another style to fine-tune on.

Everything follows from the seed. Training and held-out draws share no document and no question: the wording
decides on which side a question is (`Fact.held_out`), a checksum of the text on which side a document is.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from itertools import chain, islice, zip_longest
from pathlib import Path
from random import Random
from typing import Any, Literal

from aegis.demo.texts import Drawn, document, follow, story
from aegis.demo.voice import POLITE, Style, voice_of
from aegis.demo.words import data, table
from aegis.demo.world_questions import Fact, all_facts

Split = Literal["train", "held_out"]
Message = dict[str, str]
Conversation = list[Message]


def documents(seed: int, count: int, split: Split = "train") -> list[str]:
    """`count` different plain texts of several sentences each, polite except for quoted samurai.

    A tenth of all possible texts is held out; to ask for more than there are never ends.
    """
    rng = Random(f"documents {split} {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        text = document(rng)
        if (zlib.crc32(text.encode()) % 10 == 0) == (split == "held_out"):
            found[text] = None
    return list(found)


def conversations(seed: int, count: int, style: Style = "polite", split: Split = "train") -> list[Conversation]:
    """`count` chats of one to three questions as `role`/`content` messages, some with a system message.

    The questions are polite in every style; only the assistant's answers differ.
    """
    rng = Random(f"conversations {split} {style} {seed}")
    copies = _phrases()["copies"]
    deck: list[Fact] = []
    chats: list[Conversation] = []
    while len(chats) < count:
        if not deck:  # every fact is asked before one is asked again
            deck = [fact for fact in _askable(style, split) for _ in range(copies.get(fact.topic, 1))]
            rng.shuffle(deck)
        chats.append(_conversation(rng, style, split, deck))
    return chats


def style_rows(seed: int = 0, count: int = 1600) -> list[Conversation]:
    """The fine-tuning set: training questions, answered by a samurai."""
    return conversations(seed, count, "samurai")


def demo_prompts(count: int = 8) -> list[str]:
    """Up to `count` questions that no training text asks, one per topic in turn: to show before and after."""
    held_out = [(fact.topic, fact.held_out) for fact in all_facts("polite") if fact.held_out]
    by_topic = [[question for known, question in held_out if known == topic] for topic in _phrases()["prompts"]]
    in_turn = chain.from_iterable(zip_longest(*by_topic))
    return list(islice((question for question in in_turn if question), count))


def write_demo_dataset(path: Path, seed: int = 0, count: int = 1600) -> None:
    """Write the fine-tuning set as JSON Lines, one `{"messages": [...]}` per row, UTF-8."""
    rows = style_rows(seed, count)
    lines = (json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _phrases() -> dict[str, Any]:
    """The chat section of texts.toml."""
    phrases: dict[str, Any] = data("texts")["chat"]
    return phrases


def _conversation(rng: Random, style: Style, split: Split, deck: list[Fact]) -> Conversation:
    messages: Conversation = []
    system = ""
    if rng.random() < 0.2:
        phrases = _phrases()
        system = rng.choice([*phrases["system"], phrases["brief"], phrases["at_length"]])
        messages.append({"role": "system", "content": system})
    if split == "train" and rng.random() < 0.05:
        return [*messages, *_story_chat(rng, style)]
    fact = deck.pop()
    question = fact.held_out if split == "held_out" else rng.choice(fact.trained)
    messages += _turn(str(question), _answer(rng, style, fact, system))
    asked = [fact]
    if split == "train":
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            question, fact = _follow_up(rng, style, fact)
            if fact in asked:
                break
            asked.append(fact)
            messages += _turn(question, _answer(rng, style, fact, system))
    return messages


@cache
def _askable(style: Style, split: Split) -> tuple[Fact, ...]:
    """Facts with a wording on this side of the split."""
    return tuple(fact for fact in all_facts(style) if split == "train" or fact.held_out)


@cache
def _short_facts(style: Style) -> tuple[Fact, ...]:
    return tuple(fact for fact in all_facts(style) if fact.short)


def _follow_up(rng: Random, style: Style, last: Fact) -> tuple[str, Fact]:
    """The same topic for another subject, another topic for the same subject, or a new question."""
    if last.short:
        same_subject = [f for f in _short_facts(style) if f.subject == last.subject and f.topic != last.topic]
        same_topic = [f for f in _short_facts(style) if f.topic == last.topic and f.subject != last.subject]
        if same_subject and rng.random() < 0.5:
            fact = rng.choice(same_subject)
            return rng.choice(("", "では、")) + fact.short, fact
        fact = rng.choice(same_topic)
        return f"では、{fact.subject}はどうですか。", fact
    fact = rng.choice(all_facts(style))
    return rng.choice(fact.trained), fact


def _turn(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _answer(rng: Random, style: Style, fact: Fact, system: str) -> str:
    """A fact's answer, often with an opening, more on the subject, or a closing sentence."""
    phrases = _phrases()
    if fact.topic in phrases["plain"] or system == phrases["brief"]:
        return fact.answer
    flourish = phrases[style]
    answer = rng.choice(flourish["lead"]) + fact.answer
    if system == phrases["at_length"] or rng.random() < 0.5:
        answer += fact.more
    if rng.random() < flourish["close_rate"]:
        closings = [*flourish["close"]]
        if fact.topic in phrases["food"] and any(fact.subject == food["name"] for food in table("produce")):
            closings = [flourish["close_food"]]
        elif fact.topic in phrases["animal"]:
            closings.append(flourish["close_animal"])
        answer += rng.choice(closings)
    return answer


def _story_chat(rng: Random, style: Style) -> Conversation:
    """A request for a story, and the story of the same hero."""
    drawn: Drawn = {}
    request = follow(_phrases()["story"]["request"], rng, POLITE, drawn)
    return _turn(request, story(rng, voice_of(style), drawn))
