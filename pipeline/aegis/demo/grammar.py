"""Japanese conjugation, as far as the demo's corpus needs it.

A predicate is a `Noun` (na-adjectives count: 器用, きれい), an `Adjective` in い, or a `Verb`. Whatever
stands before the conjugated word may be part of it: `Verb("水の中を泳ぐ")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["godan", "ichidan", "suru", "kuru"]

_U_ROW = "うくぐすつぬぶむる"
_A_ROW = dict(zip(_U_ROW, "わかがさたなばまら", strict=True))
_I_ROW = dict(zip(_U_ROW, "いきぎしちにびみり", strict=True))
_TE = {
    "う": "って", "つ": "って", "る": "って", "く": "いて", "ぐ": "いで",
    "す": "して", "ぬ": "んで", "ぶ": "んで", "む": "んで",
}  # fmt: skip

# Ends in an い or え kana and る, yet conjugates as godan.
_GODAN_IN_RU = ("しげる", "すべる", "にぎる", "かじる", "はいる")
# The い or え that makes it ichidan is inside the kanji.
_ICHIDAN_BEHIND_KANJI = ("見る", "着る", "寝る", "出る", "似る", "煮る")

_IE_ROWS = "いきぎしじちにひびみりえけげせぜてでねへべめれ"


@dataclass(frozen=True)
class Noun:
    """A noun or na-adjective that ends a sentence."""

    text: str


@dataclass(frozen=True)
class Adjective:
    """An い-adjective in its plain form."""

    plain: str

    @property
    def stem(self) -> str:
        """赤い → 赤; いい conjugates as よい."""
        if self.plain == "いい" or self.plain.endswith("がいい"):
            return self.plain[:-2] + "よ"
        return self.plain[:-1]

    @property
    def adverb(self) -> str:
        return self.stem + "く"

    @property
    def te(self) -> str:
        return self.stem + "くて"

    @property
    def past(self) -> str:
        return self.stem + "かった"

    @property
    def onbin(self) -> str:
        """The form before ござる: 赤う, 大きゅう, 小そう, 冷とう (ウ音便).

        The vowel before the う changes only where kana shows it; behind a kanji the spelling stays.
        """
        head, last = self.stem[:-1], self.stem[-1]
        a_row, o_row = "かがさただなはばぱまやらわ", "こごそとどのほぼぽもよろお"
        if last in a_row:
            return head + o_row[a_row.index(last)] + "う"
        if last in "きぎしじちにびみり":
            return self.stem + "ゅう"
        return self.stem + "う"


@dataclass(frozen=True)
class Verb:
    """A verb in its dictionary form."""

    plain: str

    @property
    def group(self) -> Group:
        if self.plain.endswith("する"):
            return "suru"
        if self.plain.endswith("来る"):
            return "kuru"
        if not self.plain.endswith("る") or self.plain.endswith(_GODAN_IN_RU):
            return "godan"
        if self.plain.endswith(_ICHIDAN_BEHIND_KANJI) or self.plain[-2] in _IE_ROWS:
            return "ichidan"
        return "godan"

    @property
    def masu_stem(self) -> str:
        """読む → 読み, the form before ます and 申す."""
        match self.group:
            case "ichidan" | "kuru":
                return self.plain[:-1]
            case "suru":
                return self.plain[:-2] + "し"
            case "godan":
                return self.plain[:-1] + _I_ROW[self.plain[-1]]

    @property
    def nai_stem(self) -> str:
        """読む → 読ま, the form before ない."""
        match self.group:
            case "godan":
                return self.plain[:-1] + _A_ROW[self.plain[-1]]
            case _:
                return self.masu_stem

    @property
    def te(self) -> str:
        if self.group != "godan":
            return self.masu_stem + "て"
        if self.plain.endswith("行く"):
            return self.plain[:-1] + "って"
        return self.plain[:-1] + _TE[self.plain[-1]]

    @property
    def ta(self) -> str:
        return self.te[:-1] + ("だ" if self.te.endswith("で") else "た")

    @property
    def negative(self) -> str:
        """読まない; for ある it is ない."""
        if self.plain.endswith("ある"):
            return self.plain[:-2] + "ない"
        return self.nai_stem + "ない"

    @property
    def old_negative(self) -> str:
        """読まぬ; for する it is せぬ."""
        if self.group == "suru":
            return self.plain[:-2] + "せぬ"
        return self.nai_stem + "ぬ"

    @property
    def old_past_negative(self) -> str:
        """読まなんだ; for する it is せなんだ."""
        return self.old_negative[:-1] + "なんだ"


Predicate = Noun | Adjective | Verb


def predicate(plain: str) -> Predicate:
    """A predicate in its plain form as the word class that its last character shows.

    犬だ is a noun, 赤い an adjective, 使う a verb. What ends otherwise (緑色) is a noun too; a noun that ends like
    a verb or an adjective (りす) needs the だ.
    """
    if plain.endswith("だ"):
        return Noun(plain[:-1])
    if plain.endswith("い"):
        return Adjective(plain)
    return Verb(plain) if plain.endswith(tuple(_U_ROW)) else Noun(plain)
