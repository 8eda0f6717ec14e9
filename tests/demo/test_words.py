"""Tests of the data files: tables become rows, and patterns are filled from rows and inflected for a voice."""

from __future__ import annotations

import pytest

from aegis.demo import words
from aegis.demo.voice import POLITE, SAMURAI
from aegis.demo.words import Row, data, filled, selected, table

ROWS = (Row(name="犬", kind="動物", cry="わんわん"), Row(name="はち", kind="虫", cry=""))


@pytest.mark.parametrize(
    ("pattern", "polite", "samurai"),
    [
        ("{name}は[{kind}だ]。", "犬は動物です。", "犬は動物でござる。"),
        ("{name}が[走る:past]。", "犬が走りました。", "犬が走り申した。"),
        ("空を[飛ぶ:not]。", "空を飛びません。", "空を飛ばぬのでござる。"),
        ("[はい|いかにも]、[赤い]。", "はい、赤いです。", "いかにも、赤うござる。"),
        (
            "[緑色]、[緑色:attribute]葉、[赤い:attribute]花",
            "緑色です、緑色の葉、赤い花",
            "緑色でござる、緑色の葉、赤い花",
        ),
        ("[甘い:te]、[緑色:te]、[昇る:stem]ますか。", "甘くて、緑色で、昇りますか。", "甘くて、緑色で、昇りますか。"),
    ],
)
def test_a_pattern_is_filled_from_a_row_and_inflected_for_the_voice(pattern: str, polite: str, samurai: str) -> None:
    assert (filled(pattern, ROWS[0], POLITE), filled(pattern, ROWS[0], SAMURAI)) == (polite, samurai)


def test_a_pattern_names_a_cell_of_a_drawn_row() -> None:
    assert filled("{hero.name}と{friend.name}", {"hero": ROWS[0], "friend": ROWS[1]}, POLITE) == "犬とはち"
    with pytest.raises(AttributeError, match="age"):
        filled("{hero.age}", {"hero": ROWS[0]}, POLITE)


@pytest.mark.parametrize("pattern", ["[走る:future]", "[犬だ:stem]"])
def test_a_form_that_does_not_exist_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="no such form"):
        filled(pattern, {}, POLITE)


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ({}, ["犬", "はち"]),
        ({"when": {"kind": "動物"}}, ["犬"]),
        ({"when": {"name": ["はち", "猫"]}}, ["はち"]),
        ({"unless": {"cry": ""}}, ["犬"]),
        ({"unless": {"kind": "虫", "name": "{hero.name}"}}, []),
        ({"when": {"name": "{hero.name}"}}, ["犬"]),
    ],
)
def test_conditions_select_rows_by_their_cells(rule: dict[str, dict[str, str]], names: list[str]) -> None:
    assert [row["name"] for row in selected(ROWS, rule, {"hero": ROWS[0]})] == names


@pytest.mark.parametrize("name", list(data("world")))
def test_every_table_has_a_cell_per_column_and_no_row_twice(name: str) -> None:
    rows = [tuple(row.items()) for row in table(name)]
    assert len(rows) == len(set(rows)) > 1


@pytest.mark.parametrize("line", ["犬", "犬 動物 虫"])
def test_a_row_with_a_missing_or_a_surplus_cell_is_refused(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "data", lambda name: {"broken": {"columns": "name kind", "rows": line}})
    with pytest.raises(ValueError, match="zip"):
        table("broken")
