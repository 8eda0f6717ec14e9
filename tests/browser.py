"""A real headless Chromium, controlled over a pipe with its DevTools protocol: what it loads and shows of a page."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE_S = 60.0


@dataclass
class Seen:
    """The result of opening a page.

    Attributes:
        requests: every requested address, the page's own first.
        complaints: every message in the console, and every exception.
        found: the values of the given expressions.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


class Tab:
    """An open page: what it shows, and a person's mouse and keys.

    Attributes:
        seen: its requests and complaints, when it is closed.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.seen = Seen()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser._call(method, params, self._session)

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page; a promise's, when it is kept."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        until = time.monotonic() + _PATIENCE_S
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"not within {_PATIENCE_S:.0f} s: {expression}"
            time.sleep(0.05)
        return found

    def click(self, selector: str) -> None:
        """Press the mouse on the middle of an element."""
        box = f"(e => (e.scrollIntoView({{block: 'nearest'}}), e.getBoundingClientRect()))({self._element(selector)})"
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str, *, enter: bool = False) -> None:
        """Type where the cursor is."""
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp") if enter else ():
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    @staticmethod
    def _element(selector: str) -> str:
        return f"document.querySelector({json.dumps(selector)})"


class Browser:
    """One process for several pages."""

    def __init__(self, program: str, profile: Path) -> None:
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        arguments = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"),
        ]
        # Chromium reads its commands from descriptor 3 and answers on 4
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands_read} 4>&{answers_write}', "bash", program, *arguments],
            pass_fds=(commands_read, answers_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_read)
        os.close(answers_write)
        self._rest = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def close(self) -> None:
        with suppress(OSError):
            self._call("Browser.close", {}, None)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def open(self, url: str, width: int = 1000, **expressions: str) -> Seen:
        """Load a page and evaluate expressions in it, under their names."""
        with self.tab(url, width) as tab:
            tab.seen.found |= {name: tab.value(expression) for name, expression in expressions.items()}
        return tab.seen

    @contextmanager
    def tab(self, url: str, width: int = 1000, *, dark: bool = False, language: str = "en") -> Iterator[Tab]:
        """Load a page and keep it open; when the block has ended, what it has requested and complained of is known."""
        target = self._call("Target.createTarget", {"url": "about:blank"}, None)
        attached = self._call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}, None)
        tab = Tab(self, str(attached["sessionId"]))
        for domain in ("Page", "Network", "Log", "Runtime"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        agent = str(self._call("Browser.getVersion", {}, None)["userAgent"])
        tab.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        tab.call("Page.setLifecycleEventsEnabled", enabled=True)
        self._events.clear()
        # the load event of about:blank may come late; it has another loader
        loaded = {"name": "load", "loaderId": tab.call("Page.navigate", url=url)["loaderId"]}
        until = time.monotonic() + _PATIENCE_S
        while not any(loaded.items() <= event.get("params", {}).items() for event in self._events):
            self._events.append(self._next(until))
        try:
            yield tab
        finally:
            for event in self._events:
                if event["method"] == "Network.requestWillBeSent":
                    tab.seen.requests.append(event["params"]["request"]["url"])
                elif event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                    tab.seen.complaints.append(json.dumps(event["params"])[:500])
            self._call("Target.closeTarget", {"targetId": target["targetId"]}, None)

    def _call(self, method: str, params: dict[str, Any], session: str | None) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _PATIENCE_S
        while True:
            answer = self._next(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if "method" in answer:
                self._events.append(answer)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self._answers, 1 << 16)
            assert chunk, "Chromium has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def started(profile: Path) -> Iterator[Browser | None]:
    """Return a browser, or None if there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        yield None
        return
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
