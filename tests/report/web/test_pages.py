"""Tests of the pages' files: they load nothing, make no markup of text, and have every text that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import aegis.report.web
from aegis.messages import words
from aegis.report.web.pages import page
from tests.chat.serving.conftest import require_packages

FILES = {
    path.name: path.read_text(encoding="utf-8")
    for path in Path(aegis.report.web.__file__).parent.iterdir()
    if path.suffix in {".js", ".css", ".jinja"}
}
MAKES_MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc"
)
NAMESPACE = "http://www.w3.org/2000/svg"


def test_no_script_makes_markup_of_text() -> None:
    """The control is a line that would."""
    scripts = {name: text for name, text in FILES.items() if name.endswith(".js")}
    assert set(scripts) == {"page.js", "chat.js", "watch.js"}
    assert [name for name, text in scripts.items() if MAKES_MARKUP.search(text)] == []
    assert MAKES_MARKUP.search("box.innerHTML = answer")


@pytest.mark.parametrize("name", ["chat", "watch"])
def test_a_page_is_one_file_that_names_no_other_place(name: str) -> None:
    require_packages("starlette")
    answer = page(name)  # type: ignore[arg-type]
    text = bytes(answer.body).decode()
    assert re.findall(r"https?://[^\s\"']+", text.replace(NAMESPACE, "")) == []
    assert re.findall(r"@import|url\(|<link(?![^>]*href=\"data:,\")|<script src", text) == []
    assert "'unsafe-inline'" not in answer.headers["Content-Security-Policy"]
    assert text.count("</script>") == 2, "a text cannot end the script that holds it"


def test_the_pages_have_every_text_that_they_name_and_no_other() -> None:
    source = "".join(FILES.values())
    named = set(re.findall(r"(?:chat|watch)(?:_[a-z]+)+(?![_a-z])|\blost\b", source)) | {"chat", "watch"}
    states = {"watch_waiting", "watch_running", "watch_ended", "watch_reported"}
    phases = {f"watch_phase_{phase}" for phase in ("stable", "transitioning", "golden")}
    known = set(words("web_page", "en"))
    assert known - named - states - phases == set()
    assert named - known == set()
