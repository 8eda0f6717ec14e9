"""push: uploads a run's GGUF files or merged folder to the Hub, with a card that has verify's result.

It uploads the files that the manifest lists, after a check. The manifest itself is not uploaded, because it has paths
of this disk. The uploaded card has verify's table; the card in the run was sealed before verify and does not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aegis import __version__, progress
from aegis.errors import EnvironmentFault, IntegrityError, UsageError, first_line
from aegis.hub.client import CARD, http_error, upload_bars
from aegis.limits import RECORD_BYTES, read_json
from aegis.messages import phrase
from aegis.report.answers import ANSWERS
from aegis.report.card import with_answers, with_verdict
from aegis.runs.manifest import read_manifest, verify_directory
from aegis.runs.run import Run
from aegis.verification.verdict import read_verdict

Part = Literal["gguf", "merged"]


@dataclass(frozen=True)
class PushReport:
    """The uploaded files, and their repository."""

    repo: str
    url: str
    part: Part
    files: tuple[str, ...]
    verified: bool


def push(
    run: Run, repo: str, part: Part, *, public: bool = False, unverified: bool = False, dry_run: bool = False
) -> PushReport:
    """Upload one part of a run in one commit, without a question; nothing in the repository is deleted.

    Args:
        repo: owner/name; created if it does not exist, private unless `public`. An existing repository keeps its
            visibility.
        unverified: upload even if verify has not passed; the card then says so.
        dry_run: stop before the first request to the Hub; all other checks are made.

    Raises:
        IntegrityError: verify has not passed this run, or a file differs from the manifest.
        UsageError: the run does not have this part, or `repo` is not the name of a repository.
        EnvironmentFault: the Hub cannot be reached, or refuses access.
    """
    directory = run.published(part)
    manifest = verify_directory(directory)
    found, why_not = read_verdict(run)
    if why_not and not unverified:
        raise IntegrityError("push.unverified", run_root=run.root, why_not=why_not)
    names = sorted({*manifest.files} - {CARD})
    text = _card(run, directory, found)
    if dry_run:
        return PushReport(repo, f"https://huggingface.co/{repo}", part, (*names, CARD), not why_not)
    with _hub(repo) as api, upload_bars(names):
        from huggingface_hub import CommitOperationAdd

        visible = "public" if public else "private"
        progress.say(phrase("push.target", repo=repo, visible=visible))
        made = api.create_repo(repo, private=not public, exist_ok=True)
        operations = [CommitOperationAdd(name, str(directory / name)) for name in names]
        operations.append(CommitOperationAdd(CARD, text.encode()))
        api.create_commit(made.repo_id, operations, commit_message=f"Upload {part} with AEGIS {__version__}")
    return PushReport(made.repo_id, str(made), part, (*names, CARD), not why_not)


def card(run: Run, part: Part) -> str:
    """Return the card of one part of a run, with verify's result if there is one.

    Raises:
        UsageError: the run does not have this part.
        IntegrityError: the part has no card, or a manifest is damaged.
    """
    return _card(run, run.published(part), read_verdict(run)[0])


def _card(run: Run, directory: Path, found: dict[str, Any] | None) -> str:
    path = directory / CARD
    if not path.is_file():
        raise IntegrityError("push.no_card", directory=directory, card=CARD)
    text = path.read_text(encoding="utf-8")
    if found:
        text = with_verdict(text, found)
    return with_answers(text, *_answers(run))


def _answers(run: Run) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the questions and answers of a report on the current files; empty if there is none."""
    try:
        if read_manifest(run.report).inputs["export"] != read_manifest(run.gguf).exact_identity:
            return [], []
        document = read_json(run.report / ANSWERS, RECORD_BYTES)
        names = {"base": "base", "gguf": "this model"}
        asked = [(names[who], [str(text) for text in texts]) for who, texts in document["answers"] if who in names]
        return [str(question) for question in document["questions"]], asked
    except (IntegrityError, OSError, ValueError, LookupError, TypeError):
        return [], []


@contextmanager
def _hub(repo: str) -> Iterator[Any]:
    """Yield the Hub's client; translate its errors to AEGIS's, without the token in their texts."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    token = get_token()
    if token is None:
        raise EnvironmentFault("push.no_token")

    def line_of(error: BaseException) -> str:
        return first_line(error).replace(token, "…")

    try:
        yield HfApi(token=token, library_name="aegis", library_version=__version__)
    except HFValidationError as error:
        raise UsageError("push.not_a_name", repo=repo, reason=line_of(error)) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise EnvironmentFault("push.not_allowed", repo=repo, reason=line_of(error)) from None
        raise EnvironmentFault("push.not_taken", repo=repo, reason=line_of(error)) from None
    except (http_error(), OSError, RuntimeError) as error:
        raise EnvironmentFault("push.not_uploaded", repo=repo, reason=line_of(error)) from None
    except Exception as error:  # what the client raises for an answer that no Hub gives, such as a portal's
        reason = f"{type(error).__name__}: {line_of(error)}"
        raise EnvironmentFault("push.strange_answer", repo=repo, reason=reason) from None
