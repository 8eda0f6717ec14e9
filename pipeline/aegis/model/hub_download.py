"""A base from the Hub: its files without any code, failures in words, and another try where the server failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.errors import EnvironmentFault, UnsupportedModelError, UsageError, first_line
from aegis.hub import download_bars, http_error
from aegis.messages import phrase

DESCRIPTION = ("*.json", "*.model", "*.jinja", "*.txt")
WANTED = ("*.safetensors", *DESCRIPTION, "LICENSE*", "README.md")
_WAITS_S = (1, 3, 9)


def download(name: str, revision: str | None, patterns: Sequence[str] = WANTED, **where: Any) -> tuple[Path, str]:
    """Fetch what is missing of a model on the Hub.

    Args:
        patterns: the files that are wanted.
        where: of the Hub's library: `local_dir`, `local_files_only`.

    Returns:
        The folder and the commit that `revision` stands for.

    Raises:
        UsageError: no such repository or revision.
        EnvironmentFault: the Hub cannot be reached, or does not let us in.
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
        # the cache calls a folder by its commit
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
    """Download what is missing. The Hub's library resumes and retries, but gives up at once on a server's error."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in (*_WAITS_S, None):
        try:
            # *.py stays where it is: the native class is used, code that comes with a model is not even fetched
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
