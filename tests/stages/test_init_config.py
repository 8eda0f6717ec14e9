"""Tests of aegis.toml: it is valid, and has every setting with its true default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from aegis.config.presets import PRESETS
from aegis.config.resolve import resolve
from aegis.config.settings import SECTIONS
from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError
from aegis.messages import LANGUAGES, VARIABLE, Language
from aegis.messages.layout import cell_width
from aegis.stages.init_config import check, render, write
from tests.screen_texts import english_in

NAMES = ["owner/name", r"C:\models\日本 語", 'a "quoted" name', "tab\tand\nline", "dollar $HOME 'single'"]


@pytest.mark.parametrize("spoken", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_written_config_is_read_back(
    tmp_path: Path, name: str, spoken: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and data as they were given, whatever is in their names; everything else is the default. In UTF-8."""
    monkeypatch.setenv(VARIABLE, spoken)
    write(tmp_path / "aegis.toml", name, name)
    for model in SECTIONS.values():
        found = resolve(model, file=tmp_path / "aegis.toml", environment={})
        chosen = {"base_model": name, "dataset": name} if model is TrainConfig else {}
        assert found == model.model_validate(chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["aegis.toml"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_settings_are_read_back(tmp_path: Path, preset: str) -> None:
    """With another base and other data; the control is the file without the preset."""
    files = {"with": PRESETS[preset], "without": {}}
    found = {}
    for name, settings in files.items():
        write(tmp_path / name, "owner/name", "mine.jsonl", settings)
        found[name] = [resolve(model, file=tmp_path / name, environment={}) for model in SECTIONS.values()]
    flags = {"base_model": "owner/name", "dataset": "mine.jsonl"}
    wanted = [
        resolve(model, preset=preset, flags=flags if model is TrainConfig else {}, environment={})
        for model in SECTIONS.values()
    ]
    assert found["with"] == wanted != found["without"]


@pytest.mark.parametrize("spoken", LANGUAGES)
def test_uncommenting_a_default_does_not_change_the_config(
    tmp_path: Path, spoken: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commented line is valid TOML and says what holds anyway; a setting without a default has no value."""
    monkeypatch.setenv(VARIABLE, spoken)
    text = render("demo", "demo")
    bare = re.sub(r"^# ([a-z0-9_]+ = .+)$", r"\1", text, flags=re.MULTILINE)
    file = tmp_path / "all.toml"
    file.write_text(bare, encoding="utf-8")
    for section, model in SECTIONS.items():
        assert resolve(model, file=file, environment={}) == model.model_validate({}), section
        given = tomllib.loads(bare)[section]
        empty = {key for key, field in model.model_fields.items() if field.default in (None, ())}
        assert set(given) == set(model.model_fields) - empty
        assert all(re.search(rf"^# {key} =$", text, re.MULTILINE) for key in empty)


def test_every_setting_is_described() -> None:
    words = "".join(render("demo", "demo").replace("#", "").split())
    for model in SECTIONS.values():
        for name, field in model.model_fields.items():
            assert "".join(str(field.description).split()) in words, name
    assert max(map(len, render("demo", "demo").splitlines())) <= 120


def test_the_comments_are_in_the_users_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its comments, the file is the same in both languages."""
    files = {}
    for spoken in LANGUAGES:
        monkeypatch.setenv(VARIABLE, spoken)
        files[spoken] = render("demo", "demo")
    comments = {
        spoken: [line for line in text.splitlines() if re.match(r"# (?![a-z0-9_]+ =)", line)]
        for spoken, text in files.items()
    }
    bare = {
        spoken: [line for line in text.splitlines() if line not in comments[spoken]] for spoken, text in files.items()
    }
    assert bare["ja"] == bare["en"]
    assert len(bare["ja"]) > 100
    assert english_in("\n".join(comments["en"]))
    assert english_in("\n".join(comments["ja"])) == []
    assert max(map(cell_width, files["ja"].splitlines())) <= 120


def test_base_and_data_are_found_without_network(tmp_path: Path, quick_base: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert check(str(quick_base), str(data)) == []
    assert check(str(quick_base), str(tmp_path)) == []  # a folder of files
    assert check("demo", "demo") == []
    assert len(check("owner/name", "owner/data")) == 2  # taken for Hub ids, which is printed
    for base, dataset in (
        ("./nowhere", str(data)),
        (str(tmp_path), str(data)),
        ("owner/name", "absent.jsonl"),
        ("owner/name", str(empty)),
        ("name", str(data)),
    ):
        with pytest.raises(UsageError):
            check(base, dataset)
    (tmp_path / "data.docx").touch()
    with pytest.raises(UsageError, match=r"\.docx"):
        check("owner/name", str(tmp_path / "data.docx"))


def test_a_path_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path / "absent" / "aegis.toml", "demo", "demo")
