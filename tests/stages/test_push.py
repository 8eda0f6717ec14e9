"""Tests of push: it uploads verified files to the named repository, and the token stays secret."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.report.card import CardFile, gguf_card, merged_card
from aegis.runs.facts import Provenance
from aegis.runs.manifest import Manifest, read_manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.stages.push import card
from aegis.verification.verdict import SCHEMA, SCHEMA_VERSION
from tests.report.test_card import REPORT
from tests.stages.hub import Hub, hub_running

ROOT = Path(__file__).parents[2]
TOKEN = "hf_stand1nStand1nStand1nStand1nStand1n"
FILES = [CardFile("tiny-Q4_K_M.gguf", 9, "a" * 64)]
CARDS = {
    "gguf": gguf_card(Provenance(base="tiny"), "tiny", FILES, "0", context_tokens=4096, long_rope=True),
    "merged": merged_card(Provenance(base="tiny"), "tiny", FILES, "0"),
}

Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_running(TOKEN) as hub:
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run with every part, as the stages publish them, with small files for the weights."""
    run = Run(tmp_path / "run")
    make(run.adapter, "train", {"adapter_model.safetensors": b"adapter"})
    make(run.merged, "merge", {"model.safetensors": b"weights", "config.json": b"{}", "README.md": CARDS["merged"]})
    make(
        run.gguf,
        "export-gguf",
        {"tiny-Q4_K_M.gguf": b"GGUF" * 9, "Modelfile": b"FROM", "LICENSE": b"MIT", "README.md": CARDS["gguf"]},
    )
    make_verdict(run)
    return run


def make(directory: Path, stage: str, files: dict[str, bytes | str], **inputs: str) -> None:
    with publishing(directory, Manifest(stage, {}, inputs, {}), overwrite=True) as staging:
        for name, content in files.items():
            (staging.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def make_verdict(run: Run, **changed: object) -> None:
    parts = {"train": run.adapter, "merge": run.merged, "convert": run.gguf}
    inputs = {stage: read_manifest(directory).exact_identity for stage, directory in parts.items()}
    report = {"schema": SCHEMA, "version": SCHEMA_VERSION, **REPORT, **changed}
    make(run.verify, "verify", {"report.json": json.dumps(report)}, **inputs)


@pytest.fixture
def push(run: Run, hub: Hub, tmp_path: Path) -> Push:
    """Run `aegis push …` in a separate process with the stand-in Hub."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AEGIS_"))}
        done = subprocess.run(
            [sys.executable, "-m", "aegis", "push", *map(str, arguments), "--run", str(run.root)],
            env=inherited
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)]),
                "PYTHONUTF8": "1",
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": TOKEN,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_DISABLE_XET": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


def test_the_gguf_is_uploaded_with_its_card(push: Push, hub: Hub, run: Run) -> None:
    """Private; every file but the manifest, byte for byte; the card with verify's table; again changes nothing."""
    done = push("me/tiny")
    assert done.returncode == 0, done.stderr
    assert hub.repos == {"me/tiny": True}
    assert "private" in done.stderr
    files = hub.files["me/tiny"]
    assert set(files) == {"tiny-Q4_K_M.gguf", "Modelfile", "LICENSE", "README.md"}
    for name in set(files) - {"README.md"}:
        assert files[name] == (run.gguf / name).read_bytes()
    text = files["README.md"].decode()
    assert "proven on 2048 tokens" in text
    assert "| f16 → Q4_K_M |" in text
    assert (run.gguf / "README.md").read_text(encoding="utf-8") == CARDS["gguf"]
    assert hub.url + "/me/tiny" in done.stdout
    assert push("me/tiny").returncode == 0
    assert len(hub.large) == 1


def test_a_dry_run_names_the_files_without_a_request_to_the_hub(push: Push, hub: Hub, run: Run) -> None:
    """It refuses what the upload refuses here; nothing is made in the run."""
    before = sorted(run.root.rglob("*"))
    done = push("me/tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "nothing was uploaded" in done.stdout
    assert "tiny-Q4_K_M.gguf" in done.stdout
    assert hub.repos == {}
    assert sorted(run.root.rglob("*")) == before


def test_the_merged_folder_can_be_published(push: Push, hub: Hub) -> None:
    done = push("me/tiny", "--part", "merged", "--public")
    assert done.returncode == 0, done.stderr
    assert hub.repos == {"me/tiny": False}
    assert set(hub.files["me/tiny"]) == {"model.safetensors", "config.json", "README.md"}


@pytest.mark.parametrize("part", ["gguf", "merged"])
def test_the_card_has_the_verdict_only_if_it_is_about_this_run(run: Run, part: Any) -> None:
    """With verify's table if it is about this run; otherwise as it was sealed."""
    assert "proven on 2048 tokens" in card(run, part)
    make(run.adapter, "train", {}, base="another")
    assert card(run, part) == CARDS[part]


def test_the_card_has_the_answers_of_these_files_only(run: Run) -> None:
    """A GGUF of the same settings and inputs, made by another converter, has not given them."""
    answers = json.dumps({"questions": ["春は?"], "answers": [["gguf", ["花です。"]]]})
    make(run.report, "report", {"answers.json": answers}, export=read_manifest(run.gguf).exact_identity)
    assert "春は" in card(run, "gguf")
    make(run.gguf, "export-gguf", {"tiny-Q4_K_M.gguf": b"GGUF" * 8, "README.md": CARDS["gguf"]})
    assert card(run, "gguf") == CARDS["gguf"]


def test_a_verdict_does_not_hold_for_other_bytes_of_the_same_settings(push: Push, hub: Hub, run: Run) -> None:
    """Another version of the converter or of the quantizer makes them; the message is that of any rebuilt folder."""
    before = read_manifest(run.gguf).identity
    make(
        run.gguf,
        "export-gguf",
        {"tiny-Q4_K_M.gguf": b"FUGG" * 9, "Modelfile": b"FROM", "LICENSE": b"MIT", "README.md": CARDS["gguf"]},
    )
    assert read_manifest(run.gguf).identity == before
    done = push("me/tiny")
    assert (done.returncode, "gguf/ was rebuilt" in done.stderr) == (5, True), done.stderr
    assert hub.seen == []


def test_only_verified_files_are_uploaded(push: Push, hub: Hub, run: Run) -> None:
    """A failed verdict, one about other files, none at all: the reason; --unverified tells on the card."""
    make_verdict(run, ok=False, failed_stage="merge")
    done = push("me/tiny")
    assert (done.returncode, "it found a fault in merge" in done.stderr) == (5, True)
    make_verdict(run)
    make(run.merged, "merge", {"README.md": CARDS["merged"]}, base="another")
    done = push("me/tiny")
    assert (done.returncode, "merged/ was rebuilt" in done.stderr) == (5, True)
    (run.verify / "manifest.json").unlink()
    done = push("me/tiny")
    assert (done.returncode, "has not been run" in done.stderr) == (5, True)
    assert (hub.seen, hub.files) == ([], {})
    done = push("me/tiny", "--unverified")
    assert (done.returncode, "not verified" in done.stdout) == (0, True), done.stderr
    assert "before `aegis verify`" in hub.files["me/tiny"]["README.md"].decode()


def test_a_changed_file_is_not_uploaded(push: Push, hub: Hub, run: Run) -> None:
    (run.gguf / "tiny-Q4_K_M.gguf").write_bytes(b"FUGG" * 9)
    done = push("me/tiny", "--unverified")
    assert (done.returncode, "its content changed" in done.stderr) == (5, True)
    assert hub.seen == []


@pytest.mark.parametrize(
    ("refused", "status", "environment", "code", "shown"),
    [
        ("/api/repos/create", 403, {}, 3, "does not let you write"),
        ("", 404, {"HF_TOKEN": "hf_other"}, 3, "did not accept the upload"),
        ("/api/models/me/tiny/commit", 400, {}, 3, "did not accept the upload"),
        ("/api/nothing", 0, {"HF_TOKEN": ""}, 3, "no Hub token"),
        ("/api/nothing", 0, {"HF_HUB_OFFLINE": "1"}, 3, "could not be uploaded"),
        ("/api/nothing", 0, {"HF_ENDPOINT": "http://127.0.0.1:9"}, 3, "could not be uploaded"),
    ],
)
def test_a_refusal_of_the_hub_is_an_error_with_a_fix(
    push: Push, hub: Hub, refused: str, status: int, environment: dict[str, str], code: int, shown: str
) -> None:
    """Exit code, reason, what to do; a token that the server repeats in its answer is not shown."""
    hub.refuses = {refused: status}
    done = push("me/tiny", **environment)
    assert (done.returncode, shown in done.stderr, "do:" in done.stderr) == (code, True, True), done.stderr


@pytest.mark.parametrize(("name", "shown"), [("a/b/c", "not the name"), ("me/ti ny", "not the name")])
def test_an_invalid_repository_name_is_refused(push: Push, name: str, shown: str) -> None:
    done = push(name)
    assert (done.returncode, shown in done.stderr) == (2, True)


def test_an_unknown_part_is_refused(push: Push, run: Run) -> None:
    run.gguf.rename(run.root / "away")
    done = push("me/tiny")
    assert (done.returncode, "aegis export-gguf" in done.stderr) == (2, True)


HOSTILE_NAMES = [
    "a\x1b[31mred\x07.gguf",
    "$(touch pwned).gguf",
    "'; touch pwned; '.txt",
    "--help.txt",
    "-rf",
    "two\nlines.gguf",
    "\u202egpj.gguf",
    "　全角 spaces.gguf",
    "%2e%2e%2fup.gguf",
    "a?b#c.gguf",
    ".gitattributes",
]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file of such a name")
def test_files_of_any_name_are_uploaded_under_it_or_refused_and_are_shown_as_text(
    push: Push, hub: Hub, run: Run, tmp_path: Path
) -> None:
    content = {name: f"content of {number}" for number, name in enumerate(HOSTILE_NAMES)}
    make(run.gguf, "export-gguf", {**content, "README.md": CARDS["gguf"]})
    for arguments in (["--dry-run"], []):
        done = push("me/tiny", "--unverified", *arguments)
        assert done.returncode == 0, done.stderr
        assert not set("\x1b\x07\u202e") & set(done.stdout + done.stderr)
    assert {name: text.decode() for name, text in hub.files["me/tiny"].items() if name in content} == content
    assert not list(tmp_path.rglob("pwned"))
    assert not (ROOT / "pwned").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "inner/../../outside.txt"])
def test_a_manifest_that_lists_a_file_outside_of_the_run_uploads_nothing(
    push: Push, hub: Hub, run: Run, name: str
) -> None:
    (run.root / "outside.txt").write_bytes(b"secret")
    path = run.gguf / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    done = push("me/tiny", "--unverified")
    assert done.returncode == 5, done.stderr
    assert hub.seen == []


@pytest.mark.parametrize(
    ("prefix", "answer"),
    [
        ("/api/repos/create", b"<html>log in</html>"),
        ("/api/repos/create", b"[]"),
        ("/api/repos/create", b'{"url": 7}'),
        ("/api/repos/create", b'{"url": "http://127.0.0.1/\\u001b[31m/$(touch pwned)"}'),
        ("/api/repos/create", b"[" * 100_000),
        ("/api/models/me/tiny/preupload", b"<html>log in</html>"),
        ("/api/models/me/tiny/preupload", b"{}"),
        ("/api/models/me/tiny/commit", b"null"),
    ],
)
def test_an_answer_that_is_none_of_the_hub_is_an_error_with_a_fix(
    push: Push, hub: Hub, prefix: str, answer: bytes
) -> None:
    hub.answers = {prefix: answer}
    done = push("me/tiny")
    assert "this is a bug" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert (done.returncode, "do:" in done.stderr) in ((0, False), (3, True)), done.stderr


def test_a_refusal_with_control_characters_is_shown_as_text(push: Push, hub: Hub) -> None:
    hub.refuses, hub.adds = {"/api/models/me/tiny/commit": 400}, "\x1b]0;owned\x07\x9b31m\u202e"
    done = push("me/tiny")
    assert (done.returncode, "Bad request" in done.stderr) == (3, True)
    assert not set("\x1b\x07\x9b\u202e") & set(done.stdout + done.stderr)
