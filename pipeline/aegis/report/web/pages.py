"""Makes the pages: one file each, with its styles, its script and its texts in every language; it loads nothing else.

What a model or a run's files say is untrusted text: a script writes it with `textContent` alone, and the page's
security policy allows no script and no style but its own, and no connection but to its own server.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aegis.messages import LANGUAGES, words

if TYPE_CHECKING:
    from starlette.responses import Response

_FILES = Path(__file__).parent
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def page(name: Literal["chat", "watch"]) -> Response:
    """Return a page, with the header that says what its browser may run and load."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from starlette.responses import HTMLResponse

    style = _read("page.css") + _read(f"{name}.css")
    script = _read("page.js") + _read(f"{name}.js")
    environment = Environment(loader=FileSystemLoader(_FILES), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template(f"{name}.html.jinja")
    texts = {spoken: words("web_page", spoken) for spoken in LANGUAGES}
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; connect-src 'self'; "
        "frame-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = template.render(style=style, script=script, texts=texts)
    return HTMLResponse(content, headers={**_HEADERS, "Content-Security-Policy": policy})


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
