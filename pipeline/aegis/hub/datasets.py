"""Loads a data set from the Hub, or from the cache of earlier commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aegis.errors import EnvironmentFault, UsageError
from aegis.hub.client import http_error


def load_hub_dataset(name: str, split: str) -> Any:
    """Download a split of a data set; `datasets` 4 and later do not run code from a data set's repository.

    Raises:
        UsageError: there is no such data set or split.
        EnvironmentFault: the Hub cannot be reached, or refuses access.
    """
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise UsageError("sources.not_found", dataset=name, error=str(error)) from error
    except (http_error(), OSError, datasets.exceptions.DatasetsError) as error:
        raise EnvironmentFault("sources.not_fetched", dataset=name, error=str(error)) from error


@contextmanager
def from_cache_only() -> Iterator[None]:
    """Let `load_hub_dataset` take data sets from the cache of earlier commands alone; the Hub is not asked."""
    import datasets

    before, level = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()  # that the cache is used is what was asked for
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(level)
