"""Questions and answers about food, animals, seasons, colours and what follows from what."""

from __future__ import annotations

from collections.abc import Iterator

from aegis.demo import world
from aegis.demo.fact import Fact
from aegis.demo.grammar import Adjective, Noun, Predicate, Verb
from aegis.demo.voice import Voice


def produce(voice: Voice) -> Iterator[Fact]:
    """Colour, taste, season, use, counting, shop: of each fruit and vegetable."""
    say = voice.say
    colors = ("赤い", "黄色い", "緑色")
    for index, food in enumerate(world.PRODUCE):
        name, color = food.name, world.described(food.color)
        taste = f"{name}は{food.taste}{say(Noun('味'))}。"
        yield Fact(
            "color", name,
            (f"{name}は何色ですか。", f"{name}の色を教えてください。", f"{name}はどんな色をしていますか。"),
            f"{name}は{say(color)}。", f"味は{say(Adjective(food.taste))}。", "何色ですか。",
        )  # fmt: skip
        yield Fact(
            "taste", name,
            (f"{name}はどんな味がしますか。", f"{name}の味を教えてください。", f"{name}はどんな味ですか。"),
            taste, f"{food.season}の{name}は、とても{say(Adjective('おいしい'))}。", "どんな味ですか。",
        )  # fmt: skip
        yield Fact(
            "ripe", name,
            (f"{name}の季節はいつですか。", f"{name}はいつおいしくなりますか。", f"{name}はどの季節の食べ物ですか。"),
            f"{name}の季節は{say(Noun(food.season))}。", taste, "いつおいしくなりますか。",
        )  # fmt: skip
        yield Fact(
            "dishes", name,
            (f"{name}はどんな料理に使いますか。", f"{name}で何を作りますか。", f"{name}の食べ方を教えてください。"),
            f"{name}は{food.dishes}に{say(Verb('使う'))}。", taste, "どんな料理に使いますか。",
        )  # fmt: skip
        one, two, three = (number + food.counter for number in world.NUMBERS[1:4])
        yield Fact(
            "count", name,
            (f"{name}はどう数えますか。", f"{name}の数え方を教えてください。"),
            f"{name}は、{one}、{two}、{three}と{say(Verb('数える'))}。", "", "どう数えますか。",
        )  # fmt: skip
        yield Fact(
            "shop", name,
            (f"{name}はどこで買えますか。", f"{name}を買いたいです。どこへ行けばいいですか。"),
            f"{name}は八百屋で買うことが{say(Verb('できる'))}。", "", "どこで買えますか。",
        )  # fmt: skip
        yield Fact(
            "about", name,
            (f"{name}について教えてください。", f"{name}とは何ですか。", f"{name}はどんな食べ物ですか。"),
            f"{name}は{_attribute(food.color)}{say(Noun(food.kind))}。",
            f"味は{_link(food.taste)}、{food.dishes}に{say(Verb('使う'))}。",
        )  # fmt: skip
        asked = colors[index % 3]
        yield _yes_or_no(voice, "is_color", name, world.described(asked), color, asked == food.color)
        kind = ("くだもの", "野菜")[index % 2]
        yield _yes_or_no(voice, "is_kind", name, Noun(kind), Noun(food.kind), kind == food.kind)


def animals(voice: Voice) -> Iterator[Fact]:
    """Cry, food, home, ability, look, counting: of each animal."""
    say = voice.say
    flies = {"すずめ", "からす", "ふくろう", "ちょう", "はち", "せみ", "とんぼ"}
    cries = [animal.cry for animal in world.ANIMALS]
    for index, animal in enumerate(world.ANIMALS):
        name = animal.name
        part, how = animal.feature
        look = f"{name}は{part}が{say(Adjective(how))}。"
        does = f"{name}は{say(Verb(animal.does))}。"
        eats = f"{name}は{animal.food}を{say(Verb('食べる'))}。"
        if animal.cry:
            yield Fact(
                "cry", name,
                (f"{name}は何と鳴きますか。", f"{name}の鳴き声を教えてください。", f"{name}はどう鳴きますか。"),
                f"{name}は「{animal.cry}」と{say(Verb('鳴く'))}。", look, "何と鳴きますか。",
            )  # fmt: skip
        if animal.cry and cries.count(animal.cry) == 1:
            yield Fact(
                "who_cries", animal.cry,
                (f"「{animal.cry}」と鳴くのは何ですか。", f"何が「{animal.cry}」と鳴きますか。"),
                f"「{animal.cry}」と鳴くのは{say(Noun(name))}。", does,
            )  # fmt: skip
        if name in world.KNOWN_BY_FEATURE:
            yield Fact(
                "who_has", part + how,
                (f"{part}が{how}{animal.kind}は何ですか。", f"{part}が{how}のは、どんな{animal.kind}ですか。"),
                f"{part}が{how}{animal.kind}は{say(Noun(name))}。", does,
            )  # fmt: skip
        yield Fact(
            "food", name,
            (f"{name}は何を食べますか。", f"{name}の食べ物は何ですか。", f"{name}の好きな食べ物を教えてください。"),
            eats, does, "何を食べますか。",
        )  # fmt: skip
        yield Fact(
            "home", name,
            (f"{name}はどこにいますか。", f"{name}はどこで暮らしていますか。", f"{name}が暮らす所を教えてください。"),
            f"{name}は{animal.home}で{say(Verb('暮らしている'))}。", eats, "どこで暮らしていますか。",
        )  # fmt: skip
        yield Fact(
            "does", name,
            (f"{name}は何をしますか。", f"{name}は何が得意ですか。", f"{name}の得意なことは何ですか。"),
            does, look, "何が得意ですか。",
        )  # fmt: skip
        yield Fact(
            "look", name,
            (f"{name}の特徴は何ですか。", f"{name}にはどんな特徴がありますか。", f"{name}の特徴を教えてください。"),
            look, does, "どんな特徴がありますか。",
        )  # fmt: skip
        one, two, three = (number + animal.counter for number in world.NUMBERS[1:4])
        yield Fact(
            "count", name,
            (f"{name}はどう数えますか。", f"{name}の数え方を教えてください。"),
            f"{name}は、{one}、{two}、{three}と{say(Verb('数える'))}。", "", "どう数えますか。",
        )  # fmt: skip
        yield Fact(
            "about", name,
            (f"{name}について教えてください。", f"{name}とは何ですか。", f"{name}はどんな{animal.kind}ですか。"),
            f"{name}は{part}が{how}{say(Noun(animal.kind))}。",
            f"{animal.home}で暮らし、{animal.food}を{say(Verb('食べる'))}。",
        )  # fmt: skip
        if name in flies or animal.kind == "動物":
            questions = (f"{name}は空を飛びますか。", f"{name}は空を飛ぶことができますか。")
            yes, no = voice.pick("はい", "いかにも"), voice.pick("いいえ", "いや")
            fly = Verb("飛ぶ")
            answer = (
                f"{yes}、{name}は空を{say(fly)}。"
                if name in flies
                else f"{no}、{name}は空を{say(fly, negative=True)}。"
            )
            yield Fact("flies", name, questions, answer, "" if "飛" in animal.does else does)
        kind = ("動物", "鳥", "虫")[index % 3]
        yield _yes_or_no(voice, "is_kind", name, Noun(kind), Noun(animal.kind), kind == animal.kind)


def seasons(voice: Voice) -> Iterator[Fact]:
    """Weather, flowers, pleasures, months and food of each season."""
    say = voice.say
    for season in world.SEASONS:
        name = season.name
        blooms = f"{name}には{season.flower}が{say(Verb('咲く'))}。"
        fun = f"{name}には{season.fun}を{say(Verb('楽しむ'))}。"
        foods = [food.name for food in world.PRODUCE if food.season == name][:2]
        yield Fact(
            "season", name,
            (f"{name}はどんな季節ですか。", f"{name}について教えてください。", f"{name}の天気を教えてください。"),
            f"{name}は{season.climate}{say(Noun('季節'))}。", blooms, "どんな季節ですか。",
        )  # fmt: skip
        yield Fact(
            "blooms", name,
            (f"{name}にはどんな花が咲きますか。", f"{name}の花は何ですか。", f"{name}に咲く花を教えてください。"),
            blooms, fun, "どんな花が咲きますか。",
        )  # fmt: skip
        yield Fact(
            "fun", name,
            (f"{name}には何をしますか。", f"{name}の楽しみは何ですか。", f"{name}は何をして遊びますか。"),
            fun, blooms, "何を楽しみますか。",
        )  # fmt: skip
        yield Fact(
            "months", name,
            (f"{name}は何月ですか。", f"{name}はいつからいつまでですか。"),
            f"{name}は{say(Noun(season.months))}。", "", "何月ですか。",
        )  # fmt: skip
        yield Fact(
            "next_season", name,
            (f"{name}の次の季節は何ですか。", f"{name}が終わると、どの季節が来ますか。"),
            f"{name}の次は{say(Noun(season.next))}。", "", "次の季節は何ですか。",
        )  # fmt: skip
        yield Fact(
            "season_food", name,
            (f"{name}においしい食べ物は何ですか。", f"{name}の食べ物を教えてください。"),
            f"{name}には{foods[0]}や{foods[1]}が{say(Adjective('おいしい'))}。", "", "何がおいしいですか。",
        )  # fmt: skip


def colors(voice: Voice) -> Iterator[Fact]:
    """The colour of sky, snow, milk and the like."""
    say = voice.say
    for name, color in world.COLORS.items():
        yield Fact(
            "color", name,
            (f"{name}は何色ですか。", f"{name}の色を教えてください。", f"{name}はどんな色をしていますか。"),
            f"{name}は{say(world.described(color))}。", "", "何色ですか。",
        )  # fmt: skip


def causes(voice: Voice) -> Iterator[Fact]:
    """Effects asked from their cause, and causes from their effect; where the sun rises and sets."""
    say = voice.say
    for cause, effect in world.CAUSES:
        yield Fact(
            "effect", cause,
            (f"{cause}と、どうなりますか。", f"{cause}と、何が起こりますか。"),
            f"{cause}と、{say(effect)}。",
        )  # fmt: skip
        yield Fact(
            "why", effect.plain,
            (f"なぜ{effect.plain}のですか。", f"どうして{effect.plain}のですか。"),
            f"{cause}{say(Noun('から'))}。", f"{cause}と、{say(effect)}。",
        )  # fmt: skip
    for act, side in (("昇る", "東"), ("沈む", "西")):
        start = "から" if side == "東" else "に"
        yield Fact(
            "sun", act,
            (f"太陽はどこ{start}{Verb(act).masu_stem}ますか。", f"太陽が{act}のはどちらですか。"),
            f"太陽は{side}{start}{say(Verb(act))}。",
        )  # fmt: skip


def _attribute(word: str) -> str:
    """赤い / オレンジ色の, before a noun."""
    return word if word.endswith("い") else word + "の"


def _link(word: str) -> str:
    """赤くて / 紫色で, before another predicate."""
    return Adjective(word).te if word.endswith("い") else word + "で"


def _yes_or_no(voice: Voice, topic: str, name: str, asked: Predicate, truth: Predicate, yes: bool) -> Fact:
    plain = asked.text if isinstance(asked, Noun) else asked.plain
    right = f"{name}は{voice.say(truth)}。"
    if yes:
        answer, more = f"{voice.pick('はい', 'いかにも')}、{right}", ""
    else:
        answer, more = f"{voice.pick('いいえ', 'いや')}、{voice.say(asked, negative=True)}。{right}", ""
    return Fact(topic, name, (f"{name}は{plain}ですか。", f"{name}は{plain}でしょうか。"), answer, more)
