"""Tests of the server of this machine's pages: a port has one server; a second one takes another port or is refused."""

from __future__ import annotations

import pytest

from aegis.errors import EnvironmentFault
from aegis.report.web import local
from tests.chat.serving.conftest import require_packages


def test_a_port_that_was_bound_is_taken() -> None:
    """Also before its server accepts anything: two could bind it, and the second would fail when it listens."""
    with local.bound(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(EnvironmentFault) as raised:
            local.bound(port)
    assert raised.value.key == "server.port_taken"
    local.bound(port).close()


def test_a_second_page_takes_another_port() -> None:
    require_packages("starlette", "uvicorn")

    async def app(*_: object) -> None: ...

    with local.beside(app, 0) as url, local.beside(app, int(url.rpartition(":")[2])) as other:
        assert url != other
