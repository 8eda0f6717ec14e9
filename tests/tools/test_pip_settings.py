"""Tests that pip's settings hold for uv too: they are read as pip reads them and passed on under uv's names."""

import os
from pathlib import Path

import pytest
from startup.pip_settings import hand_on_pip_settings, parse

LISTING = """\
:env:.find-links='/wheels /more wheels'
global.cert='/etc/company.pem'
global.find-links='/elsewhere'
install.cert='/etc/install.pem'
install.constraint='/etc/limits.txt'
freeze.timeout='10'
not a setting
"""
PIP = {
    "PIP_INDEX_URL": "https://mirror.example/simple",
    "PIP_EXTRA_INDEX_URL": "file:///one/simple file:///two/simple",
    "PIP_FIND_LINKS": "/wheels /more-wheels",
    "PIP_TRUSTED_HOST": "mirror.example",
    "PIP_CERT": "/etc/company.pem",
    "PIP_PROXY": "http://proxy.example:8080",
    "PIP_TIMEOUT": "60",
    "PIP_CONSTRAINT": "/etc/limits.txt",
    "PIP_NO_INDEX": "true",
    "PIP_CLIENT_CERT": "",
}
UV = {
    "UV_DEFAULT_INDEX": "https://mirror.example/simple",
    "UV_INDEX": "file:///one/simple file:///two/simple",
    "UV_INDEX_STRATEGY": "unsafe-best-match",
    "UV_FIND_LINKS": "/wheels,/more-wheels",
    "UV_INSECURE_HOST": "mirror.example",
    "SSL_CERT_FILE": "/etc/company.pem",
    "HTTPS_PROXY": "http://proxy.example:8080",
    "HTTP_PROXY": "http://proxy.example:8080",
    "UV_HTTP_TIMEOUT": "60",
}


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("startup.pip_settings.sys.executable", "/no/such/python")


def test_install_wins_over_global_and_other_commands_do_not_count() -> None:
    assert parse(LISTING) == {
        "cert": "/etc/install.pem",
        "find-links": "/elsewhere",
        "constraint": "/etc/limits.txt",
    }


@pytest.mark.usefixtures("no_pip")
def test_each_setting_of_pip_has_its_name_in_uv() -> None:
    environment = dict(PIP)
    assert hand_on_pip_settings(environment) == ["--constraints", "/etc/limits.txt", "--no-index"]
    assert {name: value for name, value in environment.items() if name not in PIP} == UV


@pytest.mark.usefixtures("no_pip")
def test_variables_of_uvs_own_are_left_to_uv() -> None:
    own = {"UV_INDEX_URL": "https://a.example", "UV_FIND_LINKS": "/mine", "UV_INDEX": "https://b.example"}
    environment = {**own, **PIP}
    hand_on_pip_settings(environment)
    assert {name: environment.get(name) for name in (*own, "UV_DEFAULT_INDEX", "UV_INDEX_STRATEGY")} == {
        **own,
        "UV_DEFAULT_INDEX": None,
        "UV_INDEX_STRATEGY": None,
    }


@pytest.mark.usefixtures("no_pip")
def test_without_settings_no_variable_is_set() -> None:
    environment: dict[str, str] = {}
    assert hand_on_pip_settings(environment) == []
    assert environment == {}


def test_the_settings_come_from_the_installed_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\n[install]\nfind-links = /a\n  /b\n", "utf-8"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    environment = {"PIP_CERT": "/c"}
    hand_on_pip_settings(environment)
    assert environment["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert environment["UV_FIND_LINKS"] == "/a,/b"
    assert environment["SSL_CERT_FILE"] == "/c"
