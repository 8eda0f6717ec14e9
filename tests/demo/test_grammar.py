"""Tests of conjugations against tables written by hand."""

from __future__ import annotations

import pytest

from aegis.demo.grammar import Adjective, Noun, Verb, predicate
from aegis.demo.voice import POLITE, SAMURAI

VERBS = """
読む 読み 読んで 読まない 読まぬ
飛ぶ 飛び 飛んで 飛ばない 飛ばぬ
使う 使い 使って 使わない 使わぬ
打つ 打ち 打って 打たない 打たぬ
切る 切り 切って 切らない 切らぬ
走る 走り 走って 走らない 走らぬ
すべる すべり すべって すべらない すべらぬ
書く 書き 書いて 書かない 書かぬ
行く 行き 行って 行かない 行かぬ
泳ぐ 泳ぎ 泳いで 泳がない 泳がぬ
消す 消し 消して 消さない 消さぬ
食べる 食べ 食べて 食べない 食べぬ
見る 見 見て 見ない 見ぬ
着る 着 着て 着ない 着ぬ
起きる 起き 起きて 起きない 起きぬ
できる でき できて できない できぬ
運転する 運転し 運転して 運転しない 運転せぬ
来る 来 来て 来ない 来ぬ
""".strip().splitlines()


@pytest.mark.parametrize("row", VERBS)
def test_verbs_take_their_stems_and_negatives(row: str) -> None:
    plain, masu, te, negative, old_negative = row.split()
    verb = Verb(plain)
    assert (masu, te, negative, old_negative) == (verb.masu_stem, verb.te, verb.negative, verb.old_negative)


def test_the_past_follows_the_te_form() -> None:
    assert [Verb(plain).ta for plain in ("読む", "書く", "食べる")] == ["読んだ", "書いた", "食べた"]


def test_the_negative_of_aru_is_nai() -> None:
    assert Verb("がある").negative == "がない"


@pytest.mark.parametrize(
    ("plain", "onbin"),
    [
        ("赤い", "赤う"),
        ("長い", "長う"),
        ("大きい", "大きゅう"),
        ("美しい", "美しゅう"),
        ("小さい", "小そう"),
        ("冷たい", "冷とう"),
        ("やわらかい", "やわらこう"),
        ("少ない", "少のう"),
        ("いい", "よう"),
    ],
)
def test_adjectives_change_their_sound_before_gozaru(plain: str, onbin: str) -> None:
    assert onbin == Adjective(plain).onbin


@pytest.mark.parametrize(
    ("word", "polite", "samurai"),
    [
        (Noun("犬"), "犬です 犬ではありません 犬でした", "犬でござる 犬ではござらぬ 犬でござった"),
        (Adjective("赤い"), "赤いです 赤くありません 赤かったです", "赤うござる 赤うはござらぬ 赤うござった"),
        (Verb("鳴く"), "鳴きます 鳴きません 鳴きました", "鳴き申す 鳴かぬのでござる 鳴き申した"),
        (Verb("草がある"), "草があります 草がありません 草がありました", "草がござる 草がござらぬ 草がござった"),
        (Verb("木がゆれている"), "木がゆれています 木がゆれていません 木がゆれていました", None),
    ],
)
def test_a_statement_ends_as_its_voice_does(word: Noun | Adjective | Verb, polite: str, samurai: str | None) -> None:
    for voice, expected in ((POLITE, polite), (SAMURAI, samurai)):
        forms = (voice.say(word), voice.say(word, negative=True), voice.say(word, past=True))
        assert expected is None or tuple(expected.split()) == forms


def test_a_samurai_uses_oru_and_itasu() -> None:
    assert SAMURAI.say(Verb("町で暮らしている")).startswith("町で暮らしてお")
    assert SAMURAI.say(Verb("お参りをする")).startswith("お参りをいた")


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("犬だ", Noun("犬")),
        ("りすだ", Noun("りす")),
        ("緑色", Noun("緑色")),
        ("だ", Noun("")),
        ("赤い", Adjective("赤い")),
        ("空を飛ぶ", Verb("空を飛ぶ")),
        ("りす", Verb("りす")),
    ],
)
def test_the_last_character_of_a_predicate_shows_its_word_class(plain: str, expected: Noun | Adjective | Verb) -> None:
    assert predicate(plain) == expected
