"""Tests of texts that follow steps: what they draw, say and skip."""

from __future__ import annotations

from random import Random

import pytest

from aegis.demo.texts import Drawn, follow, story
from aegis.demo.voice import POLITE, SAMURAI
from aegis.demo.words import data, table

SEEDS = range(60)


def test_a_step_draws_a_row_or_an_entry_under_its_name() -> None:
    steps = [
        {"draw": "seasons"},
        {"draw": "mood", "from": ["楽しい", "{seasons.climate}"]},
        {"say": "{seasons.name}は[{mood}]。"},
    ]
    texts = {follow(steps, Random(seed), POLITE, {}) for seed in SEEDS}
    assert {"春は楽しいです。", "冬は楽しいです。", "夏は暑いです。"} <= texts
    assert "夏は寒いです。" not in texts


def test_several_names_draw_different_rows() -> None:
    steps = [{"draw": ["first", "second"], "from": "seasons"}]
    for seed in SEEDS:
        drawn: Drawn = {}
        follow(steps, Random(seed), POLITE, drawn)
        assert drawn["first"] != drawn["second"]


def test_a_row_that_is_already_drawn_is_not_drawn_again() -> None:
    hero = next(animal for animal in table("animals") if animal["name"] == "象")
    stories = {story(Random(seed), SAMURAI, {"hero": hero}) for seed in SEEDS}
    assert all("象が" in text for text in stories)
    # the control: without a hero, other animals have their stories too
    assert not all("象が" in story(Random(seed), SAMURAI, {}) for seed in SEEDS)


def test_a_hero_meets_another_animal() -> None:
    steps = data("texts")["documents"]["story"]
    for seed in SEEDS:
        drawn: Drawn = {}
        follow(steps, Random(seed), POLITE, drawn)
        assert drawn["hero"] != drawn["friend"]


def test_steps_with_a_chance_are_sometimes_skipped() -> None:
    steps = [{"say": "山。"}, {"chance": 0.3, "steps": [{"say": "海。"}]}, {"say": ["川。", "森。"]}]
    texts = {follow(steps, Random(seed), POLITE, {}) for seed in SEEDS}
    assert texts == {"山。川。", "山。森。", "山。海。川。", "山。海。森。"}


def test_a_sentence_that_names_an_undrawn_row_is_refused() -> None:
    with pytest.raises(KeyError, match="hero"):
        follow([{"say": "{hero.name}"}], Random(0), POLITE, {})
