"""Tests of a data set on the Hub that cannot be fetched."""

from __future__ import annotations

import datasets
import pytest

from aegis.errors import EnvironmentFault
from aegis.hub.client import http_error
from aegis.hub.datasets import load_hub_dataset


def subclasses(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


def test_every_error_of_the_http_library_is_the_environments_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that times out is none of Python's own errors."""
    names = {kind.__name__ for kind in subclasses(http_error())}
    assert {"ConnectError", "ReadTimeout", "RemoteProtocolError"} <= names

    def fail(*_: object, **__: object) -> None:
        raise http_error()("no answer")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(EnvironmentFault) as caught:
        load_hub_dataset("owner/rows", "train")
    assert caught.value.key == "sources.not_fetched"
