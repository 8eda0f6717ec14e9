"""The whole world as questions and answers, in either voice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from aegis.demo import daily_facts, nature_facts
from aegis.demo.fact import Fact
from aegis.demo.small_talk import SMALL_TALK
from aegis.demo.voice import Style, Voice, voice_of


@cache
def all_facts(style: Style) -> tuple[Fact, ...]:
    """Every fact of the world, told in one style, in a fixed order."""
    voice = voice_of(style)
    sources = (
        nature_facts.produce,
        nature_facts.animals,
        nature_facts.seasons,
        nature_facts.colors,
        nature_facts.causes,
        daily_facts.tools,
        daily_facts.places,
        daily_facts.jobs,
        daily_facts.words,
        daily_facts.calendar,
        _small_talk,
    )
    return tuple(fact for source in sources for fact in source(voice))


def _small_talk(voice: Voice) -> Iterator[Fact]:
    for talk in SMALL_TALK:
        yield Fact("talk", talk.questions[0], talk.questions, voice.pick(talk.polite, talk.samurai))
