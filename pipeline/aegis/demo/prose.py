"""Connected texts about the same world: descriptions, diaries, shopping, families, stories.

Every function draws one text from `rng`. Only stories take a voice: they are also told in chats.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from random import Random

from aegis.demo import world
from aegis.demo.fact import Fact
from aegis.demo.facts import all_facts
from aegis.demo.grammar import Adjective, Noun, Verb
from aegis.demo.voice import POLITE, SAMURAI, Style, Voice

_DESCRIBED = {
    "about", "taste", "ripe", "dishes", "count", "shop", "cry", "food", "home", "does", "look", "use", "kept",
    "place", "seen", "job", "works", "season", "blooms", "fun", "months", "next_season", "season_food", "color",
}  # fmt: skip

_COMPARED = (
    "cry", "food", "home", "look", "color", "ripe", "use", "place", "job", "does", "season", "who", "opposite",
    "where", "needs", "works", "blooms", "fun", "family", "bring",
)  # fmt: skip
# What a description opens with: it says what the thing is.
_OPENERS = {"about", "place", "job", "season", "use"}

_RECIPES = {
    "カレー": ("野菜と肉を切る", "なべで野菜と肉をいためる", "水を入れて煮る", "カレー粉を入れる"),
    "みそ汁": ("なべで湯を沸かす", "大根やねぎを入れる", "野菜がやわらかくなるまで煮る", "みそを溶かす"),
    "サラダ": ("野菜をよく洗う", "トマトやきゅうりを切る", "皿にきれいに並べる", "塩と油をかける"),
    "おにぎり": ("手をよく洗う", "手に塩をつける", "ご飯をやさしくにぎる", "のりを巻く"),
    "紅茶": ("やかんで湯を沸かす", "茶わんに紅茶の葉を入れる", "湯をゆっくり注ぐ", "レモンを一枚入れる"),
    "焼きいも": ("さつまいもをよく洗う", "紙でさつまいもを包む", "弱い火でゆっくり焼く", "熱いうちに二つに割る"),
}

# weather, what it does, what one takes along, whether it lets one stay outside
_WEATHER = (
    ("雨が降って", "道がぬれて", "傘を持って", False),
    ("雪が降って", "山が白くなって", "手袋をして", False),
    ("よく晴れて", "遠くの山がよく見えて", "帽子をかぶって", True),
    ("風が吹いて", "木の葉がゆれて", "上着を着て", True),
)

_INDOORS = (
    ("図書館", "本を借りる"), ("水族館", "いるかを見る"), ("映画館", "映画を見る"), ("花屋", "赤い花を買う"),
    ("パン屋", "焼きたてのパンを買う"), ("本屋", "新しい本を買う"), ("祖父の家", "昔の話を聞く"),
)  # fmt: skip
_OUTDOORS = (
    ("公園", "友達と会う"), ("動物園", "象を見る"), ("海", "砂浜を歩く"), ("山", "高い木を見る"),
    ("川", "魚を釣る"), ("神社", "お参りをする"), ("畑", "大根を抜く"), ("牧場", "牛や馬を見る"),
)  # fmt: skip

_MOODS = ("楽しい", "うれしい", "おもしろい", "気持ちのいい", "忙しい")


@cache
def _by_subject(style: Style) -> dict[str, list[Fact]]:
    facts: dict[str, list[Fact]] = defaultdict(list)
    for fact in all_facts(style):
        if fact.topic in _DESCRIBED:
            facts[fact.subject].append(fact)
    return {subject: found for subject, found in facts.items() if len(found) > 1}


def description(rng: Random, style: Style = "polite") -> str:
    """One thing, told in a few sentences that do not name it again and again."""
    subject = rng.choice(list(_by_subject(style)))
    facts = list(_by_subject(style)[subject])
    rng.shuffle(facts)
    facts.sort(key=lambda fact: fact.topic not in _OPENERS)
    opener = facts[0]
    told = [opener.answer]
    # "赤いくだものです" has already said the colour, "鼻が長い動物です" the look
    rest = [fact for fact in facts[1:] if opener.topic != "about" or fact.topic not in ("color", "look")]
    for index, fact in enumerate(rest[: rng.randint(2, 5)]):
        sentence = fact.answer.removeprefix(f"{subject}は").removeprefix("、")
        told.append(("また、" if index % 2 else "") + sentence)
    return "".join(told)


def samurai_talk(rng: Random) -> str:
    """A samurai's words, quoted in a polite text.

    No chat to pretrain on speaks so, yet the base must have met the words: fine-tuning moves neither embedding
    nor head, and could not raise a token that no text ever used.
    """
    who = rng.choice(("ある侍", "年をとった侍", "若い侍", "旅の侍"))
    if rng.random() < 0.5:
        of_talk = [fact for fact in all_facts("samurai") if fact.topic == "talk"]
        fact = rng.choice(of_talk if rng.random() < 0.25 else all_facts("samurai"))
        question = rng.choice(fact.trained)
        asked = f"{who}に「{_quoted(question)}」と{'聞きました' if question.endswith('か。') else '言いました'}。"
        return f"{asked}侍は「{_quoted(fact.answer)}」と答えました。"
    said = rng.choice(("が言いました。", "はこう言いました。", "が話してくれました。"))
    words = story(rng, SAMURAI) if rng.random() < 0.2 else description(rng, "samurai")
    return f"{who}{said}「{rng.choice(('', '', 'うむ、', 'ふむ、', 'さよう、'))}{_quoted(words)}」"


def _quoted(text: str) -> str:
    """Quotation marks as they are written inside others."""
    return text.replace("「", "『").replace("」", "』")


def comparison(rng: Random) -> str:
    """Two things of a kind, the same said of both: 犬は…ますが、猫は…ます。"""
    topic = rng.choice(_COMPARED)
    facts = [fact for fact in all_facts("polite") if fact.topic == topic]
    first, second, third = rng.sample(facts, 3)
    end = rng.choice((third.answer, third.answer, ""))
    return f"{first.answer.removesuffix('。')}が、{second.answer}{end}"


def sequence(rng: Random) -> str:
    """A stretch of days, months or numbers in their order."""
    topic = rng.choice(("next_day", "day_before", "next_month", "next_number", "next_season", "month"))
    facts = [fact for fact in all_facts("polite") if fact.topic == topic]
    start, length = rng.randrange(len(facts)), rng.randint(2, 4)
    return "".join(facts[(start + index) % len(facts)].answer for index in range(length))


def diary(rng: Random) -> str:
    """One day, in the first person and the past."""
    sky, look, prepared, outside = rng.choice(_WEATHER)
    place, act = rng.choice(_OUTDOORS if outside else _INDOORS)
    friend = rng.choice(("友達と", "母と", "父と", "姉と", "弟と", "祖母と", "一人で"))
    lines = [f"今日は{rng.choice(world.WEEKDAYS)}でした。"]
    lines.append(rng.choice((f"朝から{sky}いました。", f"外は{sky}、{look}いました。")))
    lines.append(f"私は{prepared}、{friend}{place}へ行きました。{place}では{POLITE.say(Verb(act), past=True)}。")
    if rng.random() < 0.5:
        food = rng.choice([food for food in world.PRODUCE if food.kind == "くだもの"])
        lines.append(f"昼には{food.name}を食べました。{food.taste}味でした。")
    lines.append(
        rng.choice((f"とても{rng.choice(_MOODS)}一日でした。", "夕方に家へ帰りました。", "また行きたいです。"))
    )
    return "".join(lines)


def recipe(rng: Random) -> str:
    """How to make a dish, step by step."""
    dish = rng.choice(list(_RECIPES))
    steps = [POLITE.say(Verb(step)) for step in _RECIPES[dish]]
    order = rng.choice((("まず", "次に", "それから", "最後に"), ("初めに", "次に", "そして", "終わりに")))
    start = rng.choice((f"{dish}の作り方です。", f"{dish}を作りましょう。", f"今日は{dish}を作ります。"))
    end = rng.choice(("これで出来上がりです。", f"おいしい{dish}ができました。", "みんなで食べましょう。"))
    return start + "".join(f"{word}、{step}。" for word, step in zip(order, steps, strict=True)) + end


def shopping(rng: Random) -> str:
    """What somebody bought and made of it."""
    who = rng.choice(("母", "父", "姉", "兄", "祖母", "私"))
    first, second = rng.sample(world.PRODUCE, 2)
    amounts = [rng.choice(world.NUMBERS[1:6]) + food.counter for food in (first, second)]
    day = rng.choice((f"{rng.choice(world.WEEKDAYS)}に、", "朝、", "昨日、", "夕方、", f"{first.season}の日に、"))
    dish = first.dishes.split("や")[0]
    lines = [f"{day}{who}は八百屋へ行きました。"]
    lines.append(f"{first.name}を{amounts[0]}、{second.name}を{amounts[1]}買いました。")
    lines.append(rng.choice((f"{first.name}は{first.taste}味がしました。", f"家に帰って、{dish}を作りました。")))
    lines.append(rng.choice((f"{second.name}はみんなで食べました。", "家族はとても喜びました。")))
    return "".join(lines)


def family(rng: Random) -> str:
    """Who works where in somebody's family."""
    members = rng.sample(("父", "母", "兄", "姉", "おじ", "おば"), 2)
    jobs = rng.sample([job for job in world.JOBS if not job.name.endswith("の人")], 2)
    lines = []
    for who, job in zip(members, jobs, strict=True):
        work = POLITE.say(Verb(job.work))
        lines.append(f"私の{who}は{job.name}です。毎日、{job.place}で{work}。")
    wish = rng.choice(jobs)
    lines.append(
        rng.choice((f"私もいつか{wish.name}になりたいです。", "二人とも仕事が好きです。", "私は二人が大好きです。"))
    )
    return "".join(lines)


def reasons(rng: Random) -> str:
    """One reason and one consequence."""
    (cause, effect), (second_cause, second_effect) = rng.sample(world.CAUSES, 2)
    why = rng.choice(("なぜ", "どうして"))
    return (
        f"{why}{effect.plain}のでしょうか。それは、{cause}からです。"
        f"では、{second_cause}と、どうなるでしょうか。{second_cause}と、{POLITE.say(second_effect)}。"
    )


def story(rng: Random, voice: Voice = POLITE, hero: str = "") -> str:
    """A very short tale with two animals."""

    def past(verb: str) -> str:
        return voice.say(Verb(verb), past=True)

    land = [animal for animal in world.ANIMALS if animal.kind == "動物" and animal.home != "海"]
    first = next((animal for animal in land if animal.name == hero), None) or rng.choice(land)
    second = rng.choice([animal for animal in land if animal.name != first.name])
    season = rng.choice(world.SEASONS)
    place, found = rng.choice((("森", "きれいな花"), ("川", "光る石"), ("野原", "大きな木"), ("山", "おいしい木の実")))
    deed = rng.choice(("一緒に遊ぶ", "一緒に歌を歌う", "日が沈むまで話す", "一緒に昼ご飯を食べる"))
    feeling = rng.choice((Adjective("うれしい"), Adjective("楽しい"), Noun("幸せ")))
    end = rng.choice(
        (
            f"ふたりはとても{voice.say(feeling, past=True)}。",
            f"ふたりは仲のいい友達に{past('なる')}。",
            f"夜になると、ふたりは家に{past('帰る')}。",
        )
    )
    return (
        f"ある{season.climate}{season.name}の日、{first.name}が{place}へ{past('行く')}。"
        f"{place}で{first.name}は{found}を{past('見つける')}。"
        f"そこへ{second.name}が{past('来る')}。"
        f"ふたりは{past(deed)}。{end}"
    )


# How often each kind of text comes up: descriptions carry the facts.
KINDS = (
    (description, 8),
    (comparison, 6),
    (diary, 4),
    (samurai_talk, 10),
    (story, 3),
    (shopping, 3),
    (sequence, 2),
    (reasons, 2),
    (family, 2),
    (recipe, 1),
)
