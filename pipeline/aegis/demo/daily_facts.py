"""Questions and answers about tools, places, work, family, words and the calendar."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from aegis.demo import world
from aegis.demo.fact import Fact
from aegis.demo.grammar import Noun, Verb
from aegis.demo.voice import Voice


def tools(voice: Voice) -> Iterator[Fact]:
    """What each tool is for and where it is kept; what to take along on which day."""
    say = voice.say
    for tool in world.TOOLS:
        name, use = tool.name, tool.use
        kept = f"{name}は{tool.kept}に{say(Verb('ある'))}。"
        yield Fact(
            "use", name,
            (f"{name}は何に使いますか。", f"{name}は何をする物ですか。", f"{name}の使い道を教えてください。"),
            f"{name}は{use}時に{say(Verb('使う'))}。", kept, "何に使いますか。",
        )  # fmt: skip
        yield Fact(
            "needs", use,
            (f"{use}時には何を使いますか。", f"{use}には何が必要ですか。", f"{use}ための物は何ですか。"),
            f"{use}時には{name}を{say(Verb('使う'))}。", kept,
        )  # fmt: skip
        yield Fact(
            "kept", name,
            (f"{name}はどこにありますか。", f"{name}を探しています。どこにありますか。"),
            kept, "", "どこにありますか。",
        )  # fmt: skip
    for day, thing, why in world.ADVICE:
        yield Fact(
            "bring", day,
            (f"{day}には何を持っていきますか。", f"{day}には何が必要ですか。", f"{day}に役立つ物は何ですか。"),
            f"{day}には{thing}を{say(Verb('持っていく'))}。", f"{thing}は{why}時に{say(Verb('使う'))}。",
        )  # fmt: skip


def places(voice: Voice) -> Iterator[Fact]:
    """What one does and finds at each place."""
    say = voice.say
    for place in world.PLACES:
        name, act = place.name, place.activity
        there = "いる" if place.seen in world.LIVING else "ある"
        seen = f"{name}には{say(Verb(f'{place.seen}が{there}'))}。"
        yield Fact(
            "place", name,
            (f"{name}は何をする所ですか。", f"{name}はどんな所ですか。", f"{name}について教えてください。"),
            f"{name}は{act}{say(Noun('所'))}。", seen, "何をする所ですか。",
        )  # fmt: skip
        ask = Verb(there).masu_stem + "ますか"
        yield Fact(
            "seen", name,
            (f"{name}には何が{ask}。", f"{name}へ行くと、何が{ask}。"),
            seen, "", f"何が{ask}。",
        )  # fmt: skip
        yield Fact(
            "where", act,
            (f"{act}所はどこですか。", f"{act}時は、どこへ行きますか。", f"{act}には、どこへ行けばいいですか。"),
            f"{act}時は、{name}へ{say(Verb('行く'))}。", seen,
        )  # fmt: skip


def jobs(voice: Voice) -> Iterator[Fact]:
    """What each worker does, and where."""
    say = voice.say
    for job in world.JOBS:
        name = job.name
        works = f"{name}は{job.place}で{say(Verb('働く'))}。"
        yield Fact(
            "job", name,
            (f"{name}は何をする人ですか。", f"{name}の仕事は何ですか。", f"{name}の仕事を教えてください。"),
            f"{name}は{job.work}{say(Noun('人'))}。", works, "何をする人ですか。",
        )  # fmt: skip
        yield Fact(
            "works", name,
            (f"{name}はどこで働きますか。", f"{name}が働く所はどこですか。"),
            works, "", "どこで働きますか。",
        )  # fmt: skip
        yield Fact(
            "who", job.work,
            (f"{job.work}人は誰ですか。", f"誰が{job.work}のですか。", f"{job.work}のは誰の仕事ですか。"),
            f"{job.work}のは{say(Noun(name))}。", works,
        )  # fmt: skip


def words(voice: Voice) -> Iterator[Fact]:
    """Opposites, and what relatives are called."""
    say = voice.say
    for pair in world.OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            yield Fact(
                "opposite", word,
                (f"「{word}」の反対は何ですか。", f"「{word}」の反対の言葉を教えてください。"),
                f"「{word}」の反対は「{opposite}」{say(Noun(''))}。",
            )  # fmt: skip
    for who, word in world.FAMILY:
        yield Fact(
            "family", who,
            (f"{who}を何と言いますか。", f"{who}は誰ですか。"),
            f"{who}は{say(Noun(word))}。",
        )  # fmt: skip


def calendar(voice: Voice) -> Iterator[Fact]:
    """What comes before and after: days, months, numbers."""
    say = voice.say
    days = world.WEEKDAYS
    for index, day in enumerate(days):
        yield Fact(
            "next_day", day,
            (f"{day}の次の日は何曜日ですか。", f"今日は{day}です。明日は何曜日ですか。"),
            f"{day}の次は{say(Noun(days[(index + 1) % 7]))}。",
        )  # fmt: skip
        yield Fact(
            "day_before", day,
            (f"{day}の前の日は何曜日ですか。", f"今日は{day}です。昨日は何曜日でしたか。"),
            f"{day}の前は{say(Noun(days[index - 1]))}。",
        )  # fmt: skip
    for index in range(12):
        month, following = world.NUMBERS[index + 1] + "月", world.NUMBERS[(index + 1) % 12 + 1] + "月"
        season = world.SEASONS[(index - 2) % 12 // 3]
        yield Fact(
            "next_month", month,
            (f"{month}の次は何月ですか。", f"今月は{month}です。来月は何月ですか。"),
            f"{month}の次は{say(Noun(following))}。",
        )  # fmt: skip
        yield Fact(
            "month", month,
            (f"{month}はどの季節ですか。", f"{month}の季節を教えてください。"),
            f"{month}は{say(Noun(season.name))}。", f"{season.climate}{say(Noun('季節'))}。",
        )  # fmt: skip
    for number, following in pairwise(world.NUMBERS[1:11]):
        yield Fact(
            "next_number", number,
            (f"{number}の次の数は何ですか。", f"数を数えます。{number}の次はいくつですか。"),
            f"{number}の次は{say(Noun(following))}。",
        )  # fmt: skip
