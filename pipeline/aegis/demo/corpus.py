"""The demo's texts: documents and chats to pretrain on, chats in another style to fine-tune on.

Everything follows from the seed. Training and held-out draws share no document and no question: a question
belongs to one side by its wording (`Fact.held_out`), a document by a checksum of its text.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

from aegis.demo import prose, world
from aegis.demo.fact import Fact
from aegis.demo.facts import all_facts
from aegis.demo.voice import Style, voice_of

Split = Literal["train", "held_out"]
Message = dict[str, str]
Conversation = list[Message]

_SYSTEM = ("あなたは親切なアシスタントです。", "質問にわかりやすく答えてください。")
_BRIEF = "短く答えてください。"
_AT_LENGTH = "くわしく答えてください。"

_FOOD = {"color", "taste", "ripe", "dishes", "shop"}
_ANIMAL = {"cry", "food", "home", "does", "look", "who_cries", "who_has"}
_NO_FLOURISH = {"talk", "is_kind", "is_color", "flies"}

_LEAD = {"polite": ("",), "samurai": ("", "", "うむ、", "ふむ、", "さよう、")}
_CLOSE = {
    "polite": ("また何でも聞いてください。", "ほかに知りたいことはありますか。"),
    "samurai": ("覚えておかれよ。", "また何なりとお尋ねくだされ。", "拙者には、たやすい問いでござる。"),
}
_CLOSE_FOOD = {"polite": "ぜひ食べてみてください。", "samurai": "拙者の好物でござる。"}
_CLOSE_ANIMAL = {"polite": "とてもおもしろいですね。", "samurai": "まこと面白き生き物でござる。"}
_CLOSE_RATE = {"polite": 0.08, "samurai": 0.4}

# What no document tells must be asked for more often to be learned.
_COPIES = (
    {"talk": 8}
    | dict.fromkeys(("next_day", "day_before", "next_month", "month", "next_number", "family"), 3)
    | (
        dict.fromkeys(("flies", "is_color", "is_kind", "opposite", "where", "needs", "bring", "who", "works"), 2)
        | dict.fromkeys(("why", "effect", "who_cries", "who_has", "next_season", "months", "blooms", "fun"), 2)
    )
)

_STORY_REQUESTS = ("短いお話をしてください。", "お話を聞かせてください。", "何かお話をしてください。")

# Questions kept out of training that show the change of style well: a colour, a cry, a use, a place, a reason...
_PROMPT_TOPICS = ("color", "cry", "use", "place", "food", "effect", "job", "about", "season", "needs", "flies")


def documents(seed: int, count: int, split: Split = "train") -> list[str]:
    """`count` different plain texts of several sentences each, polite but for what a samurai is quoted with.

    The held-out side is a tenth of all there is; asking for more than it has takes long.
    """
    rng = Random(f"documents {split} {seed}")
    kinds, weights = zip(*prose.KINDS, strict=True)
    found: dict[str, None] = {}
    while len(found) < count:
        text = rng.choices(kinds, weights)[0](rng)
        if (zlib.crc32(text.encode()) % 10 == 0) == (split == "held_out"):
            found[text] = None
    return list(found)


def conversations(seed: int, count: int, style: Style = "polite", split: Split = "train") -> list[Conversation]:
    """`count` chats of one to three questions as `role`/`content` messages, some with a system message.

    The questions are polite in every style; only the assistant's answers differ.
    """
    rng = Random(f"conversations {split} {style} {seed}")
    deck: list[Fact] = []
    chats: list[Conversation] = []
    while len(chats) < count:
        if not deck:  # every fact comes up before one comes up again
            deck = [fact for fact in _askable(style, split) for _ in range(_COPIES.get(fact.topic, 1))]
            rng.shuffle(deck)
        chats.append(_conversation(rng, style, split, deck))
    return chats


def style_rows(seed: int = 0, count: int = 1600) -> list[Conversation]:
    """The fine-tuning set: training questions, answered by a samurai."""
    return conversations(seed, count, "samurai")


def demo_prompts(count: int = 8) -> list[str]:
    """Questions no training text asks, one of each kind in turn: to show before and after."""
    facts = [fact for fact in all_facts("polite") if fact.held_out]
    chosen: list[str] = []
    turn = 0
    while len(chosen) < count:
        for topic in _PROMPT_TOPICS:
            of_topic = [fact.held_out for fact in facts if fact.topic == topic]
            if turn < len(of_topic) and of_topic[turn]:
                chosen.append(str(of_topic[turn]))
        turn += 1
    return chosen[:count]


def write_demo_dataset(path: Path, seed: int = 0, count: int = 1600) -> None:
    """Write the fine-tuning set as JSON Lines, one `{"messages": [...]}` a row, UTF-8."""
    rows = style_rows(seed, count)
    lines = (json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _conversation(rng: Random, style: Style, split: Split, deck: list[Fact]) -> Conversation:
    messages: Conversation = []
    system = ""
    if rng.random() < 0.2:
        system = rng.choice((*_SYSTEM, _BRIEF, _AT_LENGTH))
        messages.append({"role": "system", "content": system})
    if split == "train" and rng.random() < 0.05:
        return [*messages, *_story_chat(rng, style)]
    fact = deck.pop()
    question = fact.held_out if split == "held_out" else rng.choice(fact.trained)
    messages += _turn(rng, style, str(question), fact, system)
    told = [fact]
    if split == "train":
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            question, fact = _follow_up(rng, style, fact)
            if fact in told:
                break
            told.append(fact)
            messages += _turn(rng, style, question, fact, system)
    return messages


@cache
def _askable(style: Style, split: Split) -> tuple[Fact, ...]:
    """Facts with a wording on this side of the split."""
    return tuple(fact for fact in all_facts(style) if split == "train" or fact.held_out)


@cache
def _short_facts(style: Style) -> tuple[Fact, ...]:
    return tuple(fact for fact in all_facts(style) if fact.short)


def _follow_up(rng: Random, style: Style, last: Fact) -> tuple[str, Fact]:
    """The same of another subject, something else of the same subject, or a new question."""
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


def _turn(rng: Random, style: Style, question: str, fact: Fact, system: str) -> Conversation:
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _answer(rng, style, fact, system)},
    ]


def _answer(rng: Random, style: Style, fact: Fact, system: str) -> str:
    if fact.topic in _NO_FLOURISH or system == _BRIEF:
        return fact.answer
    answer = rng.choice(_LEAD[style]) + fact.answer
    if system == _AT_LENGTH or rng.random() < 0.5:
        answer += fact.more
    if rng.random() < _CLOSE_RATE[style]:
        closings = [*_CLOSE[style]]
        if fact.topic in _FOOD and any(fact.subject == food.name for food in world.PRODUCE):
            closings = [_CLOSE_FOOD[style]]
        elif fact.topic in _ANIMAL:
            closings.append(_CLOSE_ANIMAL[style])
        answer += rng.choice(closings)
    return answer


def _story_chat(rng: Random, style: Style) -> Conversation:
    land = [animal.name for animal in world.ANIMALS if animal.kind == "動物" and animal.home != "海"]
    hero = rng.choice(land)
    requests = (f"{hero}のお話をしてください。", f"{hero}が出てくるお話を聞かせてください。", *_STORY_REQUESTS)
    return [
        {"role": "user", "content": rng.choice(requests)},
        {"role": "assistant", "content": prose.story(rng, voice_of(style), hero)},
    ]
