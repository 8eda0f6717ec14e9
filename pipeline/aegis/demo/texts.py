"""Longer texts about the demo's world, drawn at random: some follow the steps of texts.toml, some combine facts.

Every document is polite except for the words of a samurai that it quotes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from random import Random
from typing import Any

from aegis.demo.voice import POLITE, SAMURAI, Style, Voice
from aegis.demo.words import Row, data, filled, selected, table
from aegis.demo.world_questions import Fact, all_facts

Drawn = dict[str, object]


def document(rng: Random) -> str:
    """One text of a kind that is drawn by the weights of texts.toml."""
    weights = data("texts")["weights"]
    kind = rng.choices(list(weights), list(weights.values()))[0]
    of_facts: dict[str, Callable[[Random], str]] = {
        "description": description,
        "comparison": comparison,
        "samurai_talk": samurai_talk,
        "sequence": sequence,
    }
    if kind in of_facts:
        return of_facts[kind](rng)
    return follow(data("texts")["documents"][kind], rng, POLITE, {})


def story(rng: Random, voice: Voice, drawn: Drawn) -> str:
    """A very short tale with two animals; `drawn` may already hold its `hero`."""
    return follow(data("texts")["documents"]["story"], rng, voice, drawn)


def follow(steps: Iterable[Mapping[str, Any]], rng: Random, voice: Voice, drawn: Drawn) -> str:
    """Take steps in order (texts.toml explains them) and return the text; `drawn` receives what they draw."""
    sentences = []
    for step in steps:
        if "draw" in step:
            _draw(step, rng, drawn)
        elif "say" in step:
            said = step["say"]
            sentences.append(filled(said if isinstance(said, str) else rng.choice(said), drawn, voice))
        elif rng.random() < step["chance"]:
            sentences.append(follow(step["steps"], rng, voice, drawn))
    return "".join(sentences)


def _draw(step: Mapping[str, Any], rng: Random, drawn: Drawn) -> None:
    """Draw what a step names, unless it was drawn before."""
    names = step["draw"]
    if isinstance(names, list):
        drawn.update(zip(names, rng.sample(_choices(step, drawn), len(names)), strict=True))
    elif names not in drawn:
        drawn[names] = rng.choice(_choices(step, drawn))


def _choices(step: Mapping[str, Any], drawn: Drawn) -> Sequence[object]:
    source = step.get("from", step["draw"])
    if isinstance(source, list):
        return [entry.format_map(drawn) for entry in source]
    rows: list[Row] = selected(table(source.format_map(drawn)), step, drawn)
    return rows


@cache
def _by_subject(style: Style) -> dict[str, list[Fact]]:
    """The facts of every subject that has several to describe it with."""
    facts: dict[str, list[Fact]] = defaultdict(list)
    for fact in all_facts(style):
        if fact.topic in data("texts")["facts"]["described"]:
            facts[fact.subject].append(fact)
    return {subject: found for subject, found in facts.items() if len(found) > 1}


def description(rng: Random, style: Style = "polite") -> str:
    """One thing in a few sentences, named in the first of them only."""
    subject = rng.choice(list(_by_subject(style)))
    facts = list(_by_subject(style)[subject])
    rng.shuffle(facts)
    facts.sort(key=lambda fact: fact.topic not in data("texts")["facts"]["openers"])
    opener = facts[0]
    sentences = [opener.answer]
    # "赤いくだものです" already gives the colour, "鼻が長い動物です" the look
    rest = [fact for fact in facts[1:] if opener.topic != "about" or fact.topic not in ("color", "look")]
    for index, fact in enumerate(rest[: rng.randint(2, 5)]):
        sentence = fact.answer.removeprefix(f"{subject}は").removeprefix("、")
        sentences.append(("また、" if index % 2 else "") + sentence)
    return "".join(sentences)


def comparison(rng: Random) -> str:
    """The same topic for two subjects: 犬は…ますが、猫は…ます。"""
    facts = _of_topic(rng.choice(data("texts")["facts"]["compared"]))
    first, second, third = rng.sample(facts, 3)
    end = rng.choice((third.answer, third.answer, ""))
    return f"{first.answer.removesuffix('。')}が、{second.answer}{end}"


def sequence(rng: Random) -> str:
    """Several days, months, seasons or numbers in their order."""
    facts = _of_topic(rng.choice(data("texts")["facts"]["sequences"]))
    start, length = rng.randrange(len(facts)), rng.randint(2, 4)
    return "".join(facts[(start + index) % len(facts)].answer for index in range(length))


def samurai_talk(rng: Random) -> str:
    """A samurai's words, quoted in a polite text.

    No chat of the pretraining corpus is in this style, yet the base must know its words: fine-tuning trains
    neither the embedding nor the LM head, so it could not raise a token that no text ever used.
    """
    phrases = data("texts")["samurai"]
    who = rng.choice(phrases["who"])
    if rng.random() < 0.5:
        small_talk = _of_topic("talk", "samurai")
        fact = rng.choice(small_talk if rng.random() < 0.25 else all_facts("samurai"))
        question = rng.choice(fact.trained)
        asked = f"{who}に「{_quoted(question)}」と{'聞きました' if question.endswith('か。') else '言いました'}。"
        return f"{asked}侍は「{_quoted(fact.answer)}」と答えました。"
    begin = rng.choice(phrases["begins"])
    words = story(rng, SAMURAI, {}) if rng.random() < 0.2 else description(rng, "samurai")
    lead = rng.choice(data("texts")["chat"]["samurai"]["lead"])
    return f"{who}{begin}「{lead}{_quoted(words)}」"


def _of_topic(topic: str, style: Style = "polite") -> list[Fact]:
    return [fact for fact in all_facts(style) if fact.topic == topic]


def _quoted(text: str) -> str:
    """Quotation marks as they are written inside others."""
    return text.replace("「", "『").replace("」", "』")
