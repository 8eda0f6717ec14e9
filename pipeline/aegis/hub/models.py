"""Downloads a base from the Hub, without any code; explains failures, and retries after a server's error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.errors import EnvironmentFault, UnsupportedModelError, UsageError, first_line
from aegis.hub.client import CARD, download_bars, http_error
from aegis.messages import phrase

DESCRIPTION = ("*.json", "*.model", "*.jinja", "*.txt")
WANTED = ("*.safetensors", *DESCRIPTION, "LICENSE*", CARD)
_WAITS_S = (1, 3, 9)


def download(name: str, revision: str | None, patterns: Sequence[str] = WANTED, **where: Any) -> tuple[Path, str]:
    """Download the missing files of a model on the Hub.

    Args:
        patterns: glob patterns of the wanted files.
        where: `local_dir` or `local_files_only`, for huggingface_hub.

    Returns:
        The folder, and the commit of `revision`.

    Raises:
        UsageError: there is no such repository or revision.
        EnvironmentFault: the Hub cannot be reached, or refuses access.
        UnsupportedModelError: there are no safetensors weights.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = _fetch(name, revision, patterns, **where)
        # in the cache, a folder's name is its commit
        commit = str(model_info(name, revision=revision).sha) if "local_dir" in where else folder.name
    except HFValidationError as error:
        raise UsageError("base.not_a_hub_name", name=name, error=first_line(error)) from None
    except GatedRepoError:
        raise EnvironmentFault("base.gated", name=name) from None
    except RevisionNotFoundError:
        raise UsageError("base.no_revision", name=name, revision=revision) from None
    except RepositoryNotFoundError:
        raise UsageError("base.not_on_hub", name=name) from None
    except LocalEntryNotFoundError as error:
        raise EnvironmentFault("base.offline", name=name, error=first_line(error)) from None
    except (http_error(), OSError) as error:
        raise EnvironmentFault("base.not_downloaded", name=name, error=first_line(error)) from None
    except ValueError as error:
        raise EnvironmentFault("base.other_answers", name=name, error=first_line(error)) from None
    if "*.safetensors" in patterns and not any(folder.glob("*.safetensors")):
        raise UnsupportedModelError("base.no_weights", name=name)
    return folder, commit


def _fetch(name: str, revision: str | None, patterns: Sequence[str], **where: Any) -> Path:
    """Download what is missing. huggingface_hub resumes and retries, but gives up at once after a server's error."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in (*_WAITS_S, None):
        try:
            # *.py is not downloaded: transformers' native class is used, and no code of a model's author
            with download_bars(phrase("base.downloading", name=name)) as bars:
                return Path(
                    snapshot_download(
                        name,
                        revision=revision,
                        allow_patterns=list(patterns),
                        ignore_patterns=["consolidated*"],
                        tqdm_class=bars,
                        **where,
                    )
                )
        except HfHubHTTPError as error:
            if wait_s is None or error.response.status_code < 500:
                raise
            progress.warn(phrase("base.trying_again", error=first_line(error), wait_s=wait_s))
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")
