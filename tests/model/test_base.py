"""Tests of a base on disk and on the Hub: it is found, or refused with a fix."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub

from aegis import progress
from aegis.errors import AegisError, EnvironmentFault, IntegrityError, UnsupportedModelError, UsageError
from aegis.model.base import find_base, hash_weights, load_tokenizer, read_config
from aegis.model.load import load_base
from aegis.model.shards import ShardSet
from tests.conftest import MakeRandom, Recorder


@pytest.fixture
def copy(quick_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quick_base, tmp_path / "base"))


def test_a_folder_is_found_as_a_base(quick_base: Path, reporter: Recorder) -> None:
    base = find_base(str(quick_base))
    assert base.folder == quick_base.resolve()
    assert base.revision is None
    assert base.config["model_type"] == "phi3"
    assert base.tied is False
    assert len(base.weights_hash) == 64
    assert reporter.warned == []


def test_an_unproven_family_is_accepted_with_a_warning(make_random: MakeRandom, reporter: Recorder) -> None:
    find_base(str(make_random("olmo2")))
    assert any("olmo2" in text and "not been proven" in text for text in reporter.warned)


def test_the_hash_depends_on_the_weights_alone(copy: Path) -> None:
    """A changed config or a renamed folder is the same base; one changed bit of a weight is not."""
    before = find_base(str(copy)).weights_hash
    (copy / "README.md").write_text("words")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    moved = copy.rename(copy.parent / "moved")
    assert find_base(str(moved)).weights_hash == before
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hash_weights(ShardSet.open(moved)) != before


@pytest.mark.parametrize(
    "name", ["nowhere", "./nowhere", "/no/where", "~/nowhere", "a/b/c", "owner/", "n" * 300, "x/" + "n" * 300, "a b/c"]
)
def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError) as caught:
        find_base(name)
    assert name[:20] in caught.value.what


def test_a_file_is_refused_as_a_base(quick_base: Path) -> None:
    with pytest.raises(UsageError, match="no base model at"):
        find_base(str(quick_base / "config.json"))


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        find_base(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\udcff"])
def test_a_damaged_config_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_without_being_read(copy: Path, name: str) -> None:
    """Named, and never opened: a pickle that would write a file writes none."""
    (copy / "model.safetensors").unlink()
    sentinel = copy / "ran"
    payload = f"cbuiltins\nexec\n(S'open({str(sentinel)!r}, \"w\")'\ntR."
    (copy / name).write_bytes(payload.encode())
    with pytest.raises(UnsupportedModelError, match="safetensors") as caught:
        find_base(str(copy))
    assert name in caught.value.why
    assert not sentinel.exists()


def test_an_adapter_beside_the_model_is_refused(copy: Path) -> None:
    """transformers loads such an adapter with the base, unasked; the merge would leave it out."""
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match="adapter beside the model"):
        find_base(str(copy))


def test_missing_files_while_offline_are_an_error_that_says_so(tmp_path: Path) -> None:
    """In a separate process, because the Hub's library reads HF_HUB_OFFLINE once: exit 3, a fix, no traceback."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "AEGIS_CACHE_DIR": str(tmp_path)}
    code = (
        "from aegis.errors import EnvironmentFault\n"
        "from aegis.model.base import find_base\n"
        "try: find_base('microsoft/Phi-3.5-mini-instruct')\n"
        "except EnvironmentFault as error: print(error.exit_code, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("3 microsoft/Phi-3.5-mini-instruct is not in the local cache")
    assert "connect once" in done.stdout


def _response() -> object:
    http = sys.modules[hub.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
    return http.Response(403, request=http.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "kind", "shown"),
    [
        (lambda: hub.GatedRepoError("no", response=_response()), EnvironmentFault, "is gated"),
        (lambda: hub.RepositoryNotFoundError("no", response=_response()), UsageError, "no model 'a/b' on the Hub"),
        (lambda: hub.RevisionNotFoundError("no", response=_response()), UsageError, "no revision 'v1'"),
        (lambda: hub.LocalEntryNotFoundError("no"), EnvironmentFault, "not in the local cache"),
        (lambda: hub.HfHubHTTPError("503 busy\nmore", response=_response()), EnvironmentFault, "503 busy"),
        (lambda: hub.HfHubHTTPError.__mro__[1]("cut off"), EnvironmentFault, "cut off"),
        (lambda: ConnectionResetError("reset"), EnvironmentFault, "could not be downloaded"),
        (lambda: hub.HFValidationError("bad id"), UsageError, "bad id"),
    ],
)
def test_every_refusal_of_the_hub_becomes_an_error_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, error: object, kind: type[AegisError], shown: str
) -> None:
    def failing(*_: object, **__: object) -> str:
        raise error()  # type: ignore[operator]

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(AegisError) as caught:
        find_base("a/b", "v1")
    assert type(caught.value) is kind
    assert shown in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_code_of_a_model_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, quick_base: Path, tmp_path: Path, reporter: Recorder
) -> None:
    """What is asked of the Hub lets no .py, pickle or second copy through; the revision is the commit it came from."""
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}
    commit = tmp_path / "0123abcd"
    shutil.copytree(quick_base, commit)

    def download(name: str, *, revision: str | None, **patterns: list[str]) -> str:
        asked.update(patterns)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    base = find_base("a/b")
    assert base.revision == "0123abcd"
    unwanted = ["modeling_phi3.py", "pytorch_model.bin", "model.pt", "x/evil.py", "run.sh", "consolidated.safetensors"]
    wanted = ["model-00001-of-00002.safetensors", "config.json", "tokenizer.model", "LICENSE", "merges.txt"]
    asked.pop("tqdm_class")
    assert list(filter_repo_objects([*unwanted, *wanted], **asked)) == wanted
    for weights in commit.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UnsupportedModelError, match="no safetensors"):
        find_base("a/b")


def test_a_broken_tokenizer_is_named(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (copy / name).write_bytes(b"\x00broken")
    with pytest.raises(IntegrityError, match="tokenizer in"):
        load_tokenizer(copy)


def test_a_closed_progress_pipe_is_not_reported_as_a_fault_of_the_base(
    quick_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Recorder):
        @contextmanager
        def task(self, title: str, total: float | None, unit: str) -> Iterator[progress.Task]:
            yield progress.SilentTask()
            raise BrokenPipeError

    monkeypatch.setattr(progress, "_reporter", Gone())
    with pytest.raises(BrokenPipeError):
        load_base(quick_base, "16bit", torch.device("cpu"))
