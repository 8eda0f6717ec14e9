"""Tests that pip's settings hold for uv too: they are read as pip reads them and passed on under uv's names."""

import itertools
import os
from pathlib import Path

import pytest
from startup.pip_settings import for_uv, parse, pip_settings

LISTING = """\
:env:.find-links='/wheels /more wheels'
global.cert='/etc/company.pem'
global.extra-index-url='file:///one/simple file:///two/simple'
global.find-links='/elsewhere'
global.index-url='https://mirror.example/simple'
install.constraint='/etc/limits.txt'
freeze.timeout='10'
not a setting
"""


def test_the_environment_wins_over_files_and_other_commands_do_not_count() -> None:
    found = parse(LISTING)
    assert found["find-links"] == "/wheels /more wheels"
    assert found["constraint"] == "/etc/limits.txt"
    assert "timeout" not in found


def test_each_setting_of_pip_has_its_name_in_uv() -> None:
    settings = for_uv({**parse(LISTING), "no-index": "true", "trusted-host": "mirror.example"}, {})
    flags = list(settings.flags)
    pairs = list(itertools.pairwise(flags))
    assert ("--default-index", "https://mirror.example/simple") in pairs
    assert [value for name, value in pairs if name == "--index"] == ["file:///one/simple", "file:///two/simple"]
    assert ("--index-strategy", "unsafe-best-match") in pairs
    assert next(value for name, value in pairs if name == "--find-links") == "/wheels"
    assert ("--constraints", "/etc/limits.txt") in pairs
    assert ("--allow-insecure-host", "mirror.example") in pairs
    assert "--no-index" in flags
    assert settings.environment["SSL_CERT_FILE"] == "/etc/company.pem"
    assert settings.certificates == "/etc/company.pem"
    assert settings.own_places


def test_a_mirror_alone_has_the_public_files() -> None:
    """So the hashes hold; an extra index or a folder may have another build of torch."""
    assert not for_uv({"index-url": "https://mirror.example/simple"}, {}).own_places
    assert for_uv({"extra-index-url": "https://other.example/simple"}, {}).own_places
    assert for_uv({"find-links": "/wheels"}, {}).own_places
    assert for_uv({}, {"UV_INDEX": "https://other.example/simple"}).own_places


def test_variables_of_uvs_own_are_left_to_uv() -> None:
    own = {"UV_DEFAULT_INDEX": "https://a.example", "UV_FIND_LINKS": "/mine", "UV_INDEX": "https://b.example"}
    assert for_uv(parse(LISTING), own).flags == ("--constraints", "/etc/limits.txt")


def test_without_settings_no_variable_is_passed_on() -> None:
    settings = for_uv({}, {})
    assert (settings.flags, dict(settings.environment), settings.own_places) == ((), {}, False)


def test_the_settings_come_from_the_installed_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\n[install]\nfind-links = /a\n  /b\n", "utf-8"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/c")
    flags = list(pip_settings().flags)
    assert "https://mirror.example/simple" in flags
    assert [flags[at + 1] for at, word in enumerate(flags) if word == "--find-links"] == ["/c"]


def test_without_pip_its_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("startup.pip_settings.sys.executable", "/no/such/python")
    environment = {"PIP_INDEX_URL": "https://mirror.example/simple", "PIP_CERT": "", "PATH": "/bin"}
    assert pip_settings(environment).flags == ("--default-index", "https://mirror.example/simple")
