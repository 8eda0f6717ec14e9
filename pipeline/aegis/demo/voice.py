"""One statement in two styles: polite です・ます, and the speech of a samurai in a period drama.

The base learns the polite style and the demo's training set uses the samurai's, so that a reader sees at once
whether training had an effect and whether the GGUF has it too.
"""

from __future__ import annotations

import zlib
from typing import Literal, Protocol

from aegis.demo.grammar import Adjective, Noun, Predicate, Verb

Style = Literal["polite", "samurai"]


class Voice(Protocol):
    """Inflects the last predicate of a sentence; the rest of the sentence is the same in both voices."""

    style: Style

    def say(self, predicate: Predicate, *, negative: bool = False, past: bool = False) -> str:
        """The predicate as it ends a sentence, without the full stop."""

    def pick(self, polite: str, samurai: str) -> str:
        """The wording of this voice, where no rule makes one from the other."""


class PoliteVoice:
    style: Style = "polite"

    def say(self, predicate: Predicate, *, negative: bool = False, past: bool = False) -> str:
        match predicate:
            case Noun(text):
                if negative:
                    return text + ("ではありませんでした" if past else "ではありません")
                return text + ("でした" if past else "です")
            case Adjective():
                if negative:
                    return predicate.adverb + ("ありませんでした" if past else "ありません")
                return (predicate.past if past else predicate.plain) + "です"
            case Verb():
                if negative:
                    return predicate.masu_stem + ("ませんでした" if past else "ません")
                return predicate.masu_stem + ("ました" if past else "ます")

    def pick(self, polite: str, samurai: str) -> str:
        return polite


class SamuraiVoice:
    style: Style = "samurai"

    # Verbs that this style replaces.
    _own_words = (
        ("ている", "ておる"),
        ("でいる", "でおる"),
        ("がいる", "がおる"),
        ("する", "いたす"),
        ("言う", "申す"),
        ("もらう", "いただく"),
    )

    def say(self, predicate: Predicate, *, negative: bool = False, past: bool = False) -> str:
        match predicate:
            case Noun(text):
                if negative:
                    return text + ("ではござらなんだ" if past else "ではござらぬ")
                return text + ("でござった" if past else "でござる")
            case Adjective():
                if negative:
                    return predicate.onbin + ("はござらなんだ" if past else "はござらぬ")
                return predicate.onbin + ("ござった" if past else "ござる")
            case Verb():
                return self._say_verb(predicate, negative=negative, past=past)

    def _say_verb(self, verb: Verb, *, negative: bool, past: bool) -> str:
        if verb.plain.endswith("ある"):
            ending = ("ござらなんだ" if past else "ござらぬ") if negative else ("ござった" if past else "ござる")
            return verb.plain[:-2] + ending
        if negative:
            return verb.old_past_negative if past else verb.old_negative + "のでござる"
        for plain, own in self._own_words:
            if verb.plain.endswith(plain):
                verb = Verb(verb.plain.removesuffix(plain) + own)
                break
        if past:
            return verb.ta + "のでござる" if not _is_kana(verb.masu_stem[-1]) else verb.masu_stem + "申した"
        # Both endings are correct; a checksum of the verb chooses, so that one verb always has the same ending.
        # 申す needs a stem that ends in kana: 見申す would be hard to read.
        stem = verb.masu_stem
        if verb.plain.endswith("申す") or not _is_kana(stem[-1]) or zlib.crc32(verb.plain[-2:].encode()) % 2:
            return verb.plain + "のでござる"
        return stem + "申す"

    def pick(self, polite: str, samurai: str) -> str:
        return samurai


def _is_kana(char: str) -> bool:
    return "ぁ" <= char <= "ー"


POLITE = PoliteVoice()
SAMURAI = SamuraiVoice()


def voice_of(style: Style) -> Voice:
    """The voice of a style."""
    return POLITE if style == "polite" else SAMURAI
