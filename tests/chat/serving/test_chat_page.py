"""Tests of the chat page in a real browser: it streams, stops and compares, and what a model says stays text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from aegis import progress
from aegis.messages import Language, words
from tests.browser import Browser, Tab
from tests.conftest import Recorder

from .conftest import require_packages

HOSTILE = (
    '</p><script>document.title = "owned"</script><img src="http://127.0.0.1:9/spy.png" onerror="document.title=1">'
    '<a href="javascript:alert(1)">x</a> {{ 7 * 7 }} </script> &lt;b&gt;'
)
ANSWERS = "[...document.querySelectorAll('.answer .words')].map(e => e.textContent)"
NOTES = "[...document.querySelectorAll('.answer .note')].map(e => e.textContent)"
IDLE = "!document.getElementById('send').hidden"
MARKUP = "document.querySelectorAll('#turns script, #turns img, #turns a, #title *').length"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Engine:
    """Answers in pieces, each when the test allows it, and remembers what it was asked."""

    def __init__(self, *pieces: str, patient: bool = False) -> None:
        self.pieces, self.patient = pieces, patient
        self.asked: list[Any] = []
        self.left = False
        self.closed = False

    async def answers(self, kind: str, request: Any) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(request)
        self.left = False
        yield {"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]}
        for piece in self.pieces:
            yield {"choices": [{"delta": {"content": piece}, "finish_reason": None}]}
        while self.patient and not self.left:
            await asyncio.sleep(0.02)
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}

    def leave_off(self) -> None:
        self.left = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module", autouse=True)
def _has_its_packages() -> None:
    require_packages("starlette", "uvicorn", "llama_cpp.server.types")


@pytest.fixture
def serve() -> Callable[[dict[str, Engine]], Any]:
    from aegis.chat.serving.app import make_app
    from tests.report.web.served import served

    def serve(engines: dict[str, Engine]) -> Any:
        return served(make_app(engines))

    return serve


def ask(tab: Tab, question: str) -> None:
    tab.click("#question")
    tab.type(question, enter=True)


@pytest.mark.parametrize("width", [1280, 390])
def test_an_answer_streams_in_and_stays_text(browser: Browser, serve: Any, width: int) -> None:
    """Not a word of the model's name, the question or the answer becomes markup, and nothing else is loaded."""
    engine = Engine("これは ", HOSTILE, patient=True)
    with serve({HOSTILE: engine}) as url, browser.tab(url, width) as tab:
        tab.wait("document.getElementById('title').textContent")
        ask(tab, HOSTILE)
        assert tab.wait(f"{ANSWERS}[0].includes('img') && {ANSWERS}[0]") == f"これは {HOSTILE}"
        assert not tab.value(IDLE), "the answer is shown before it has ended"
        engine.left = True
        tab.wait(IDLE)
        assert tab.value("document.querySelector('.question').textContent") == HOSTILE
        assert tab.value(MARKUP) == 0
        assert tab.value("document.title").startswith("</p><script>")
        assert tab.value(OVERFLOW) <= 0
    assert {address.removeprefix(url) for address in tab.seen.requests if not address.startswith("data:")} == {
        "/",
        "/v1/models",
        "/v1/chat/completions",
    }
    assert tab.seen.complaints == []
    assert engine.closed


def test_the_policy_of_the_page_stops_what_is_put_into_it(browser: Browser, serve: Any) -> None:
    """The control: written as markup, the same text is loaded or run only where no policy forbids it."""
    with serve({"m": Engine("x")}) as url, browser.tab(url) as tab:
        tab.value(f"document.body.insertAdjacentHTML('beforeend', {HOSTILE!r})")
        tab.value(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.own=1'}))"
        )
        tab.wait("new Promise(done => setTimeout(() => done(true), 300))")
        assert tab.value("window.own") is None
        assert tab.value("document.title") != "1"
    assert any("Content Security Policy" in complaint for complaint in tab.seen.complaints)


def test_stop_ends_the_answer_and_the_conversation_goes_on(browser: Browser, serve: Any) -> None:
    engine = Engine("はい", "。", patient=True)
    with serve({"m": engine}) as url, browser.tab(url) as tab:
        tab.wait("document.getElementById('title').textContent")
        ask(tab, "一つ目")
        tab.wait(f"{ANSWERS}[0] === 'はい。'")
        tab.click("#stop")
        tab.wait(IDLE)
        assert tab.value(NOTES) == [words("web_page", "en")["chat_stopped"]]
        engine.patient = False
        ask(tab, "二つ目")
        tab.wait(f"{IDLE} && {ANSWERS}.length === 2")
    output = [[message["content"] for message in request.messages] for request in engine.asked]
    assert output == [["一つ目"], ["一つ目", "はい。", "二つ目"]]


def test_two_models_answer_side_by_side_each_with_its_own_history(browser: Browser, serve: Any) -> None:
    engines = {"trained": Engine("ござる"), "base": Engine("です")}
    with serve(engines) as url, browser.tab(url) as tab:
        tab.wait("document.getElementById('title').textContent === 'trained · base'")
        tab.click("summary")
        tab.click("#system")
        tab.type("短く。")
        for number in (1, 2):
            ask(tab, "犬は？")
            tab.wait(f"{IDLE} && {ANSWERS}.length === {2 * number}")
        boxes = tab.value(
            "[...document.querySelectorAll('.answer')].slice(0, 2).map(e => e.getBoundingClientRect().top)"
        )
        assert boxes[0] == boxes[1], "beside each other"
        tab.click("#again")
        tab.wait(f"{IDLE} && {ANSWERS}.length === 4")
        tab.click("#clear")
        assert tab.value(ANSWERS) == []
    for name, own in (("trained", "ござる"), ("base", "です")):
        first, second, again = ([m["content"] for m in request.messages] for request in engines[name].asked)
        assert first == ["短く。", "犬は？"]
        assert second == again == ["短く。", "犬は？", own, "犬は？"]


@pytest.mark.parametrize(("tag", "spoken"), [("ja-JP", "ja"), ("en-GB", "en"), ("fr", "en")])
def test_the_page_speaks_the_browsers_language_until_another_is_chosen(
    browser: Browser, serve: Any, tag: str, spoken: Language
) -> None:
    other: Language = "en" if spoken == "ja" else "ja"
    send = "document.getElementById('send').textContent"
    with serve({"m": Engine("x")}) as url:
        with browser.tab(url, language=tag) as tab:
            assert tab.value(send) == words("web_page", spoken)["chat_send"]
            tab.click("#language")
            assert tab.value(send) == words("web_page", other)["chat_send"]
            assert tab.value("document.documentElement.lang") == other
        with browser.tab(url, language=tag) as again:
            assert again.value(send) == words("web_page", other)["chat_send"]


def test_enter_of_an_input_method_does_not_send(browser: Browser, serve: Any) -> None:
    """A Japanese reader takes a proposed conversion with Enter; the control is the Enter after it."""
    press = "document.getElementById('question').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', %s}))"
    with serve({"m": Engine("x")}) as url, browser.tab(url) as tab:
        tab.wait("document.getElementById('title').textContent")
        tab.click("#question")
        tab.type("いぬ")
        for held in ("isComposing: true", "keyCode: 229", "shiftKey: true"):
            tab.value(press % held)
        assert tab.value(ANSWERS) == []
        tab.value(press % "cancelable: true")
        tab.wait(f"{IDLE} && {ANSWERS}.length === 1")


def test_a_refusal_is_shown_in_the_servers_words(browser: Browser, serve: Any) -> None:
    from aegis.llama_cpp.answering.refusal import Refusal

    class Refusing(Engine):
        async def answers(self, kind: str, request: Any) -> AsyncGenerator[dict[str, Any], None]:
            raise Refusal(500, "serving.model_ended")
            yield {}

    with serve({"m": Refusing()}) as url, browser.tab(url) as tab:
        tab.wait("document.getElementById('title').textContent")
        ask(tab, "x")
        tab.wait(IDLE)
        assert tab.value(NOTES) == [Refusal(500, "serving.model_ended").body["error"]["message"]]


def test_each_request_is_a_line_of_the_log(browser: Browser, serve: Any) -> None:
    recorder = Recorder()
    progress.install(recorder)
    with serve({"m": Engine("x")}) as url, browser.tab(url) as tab:
        tab.wait("document.getElementById('title').textContent")
        ask(tab, "x")
        tab.wait(f"{IDLE} && {ANSWERS}.length === 1")
    parts = [line.split()[1:4] for line in recorder.messages]
    assert parts == [["GET", "/", "200"], ["GET", "/v1/models", "200"], ["POST", "/v1/chat/completions", "200"]]
