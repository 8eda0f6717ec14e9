"""Tests of downloads from a Hub that breaks off, is busy or sends wrong bytes: no wrong byte is trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.runs.facts import TrainFacts
from aegis.runs.run import Run
from tests.faults.forked import Ended, Forked
from tests.faults.harness import Laboratory
from tests.faults.hub import COMMIT, WEIGHTS, Hub, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")
TOKEN = "hf_" + "Secret" * 6


@pytest.fixture(scope="module")
def hub(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Return a Hub with the tiny base, and beside it files that must never be downloaded."""
    folder = tmp_path_factory.mktemp("hub")
    for path in laboratory.base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "modeling_phi3.py").write_text("raise SystemExit('code of a stranger')", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def online(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    home = tmp_path_factory.mktemp("home")
    forked = Forked({"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    yield forked
    forked.close()


@pytest.fixture
def train(online: Forked, laboratory: Laboratory, tmp_path: Path) -> object:
    def command(fault: str, **environment: str) -> Ended:
        arguments = [*laboratory.arguments("train"), "--base-model", f"org/{fault}", "--max-steps", "1"]
        ended = online.aegis(tmp_path, *arguments, "--run", fault, environment={"HF_TOKEN": TOKEN, **environment})
        assert "Traceback (most recent call last)" not in ended.output
        # the token goes to the Hub and nowhere else
        assert TOKEN not in ended.output
        for path in (tmp_path / fault).rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
        return ended

    return command


def test_a_downloaded_base_is_complete_and_then_used_offline(train, hub: Hub, tmp_path: Path, online: Forked) -> None:  # type: ignore[no-untyped-def]
    """The revision becomes a commit in the manifest; no code, no pickle is asked for; later nothing is asked at all."""
    ended = train("whole")
    assert ended.code == 0
    assert "downloading org/whole: done" in ended.output
    assert TrainFacts.read(Run(tmp_path / "whole").adapter).revision == COMMIT
    fetched = {name for repository, name in hub.asked if repository == "whole"}
    assert WEIGHTS in fetched
    assert not {"modeling_phi3.py", "pytorch_model.bin"} & fetched
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_a_download_that_is_cut_off_is_resumed(train, hub: Hub) -> None:  # type: ignore[no-untyped-def]
    """It continues after the received bytes."""
    assert train("cut").code == 0
    assert hub.asked["cut", WEIGHTS] == 2


def test_a_request_to_a_busy_server_is_repeated(train, hub: Hub) -> None:  # type: ignore[no-untyped-def]
    ended = train("busy")
    assert ended.code == 0
    assert "503" in ended.output
    assert hub.asked["busy", WEIGHTS] == 3


def test_a_file_that_never_arrives_completely_is_an_error(train, hub: Hub) -> None:  # type: ignore[no-untyped-def]
    """More bytes are announced than ever come: a bounded number of tries."""
    ended = train("longer")
    assert (ended.code, "could not be downloaded" in ended.output) == (3, True)
    assert hub.asked["longer", WEIGHTS] < 10


def test_a_file_of_the_right_size_and_wrong_bytes_is_refused(train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Not trained on; removed, so that the next start fetches it again."""
    ended = train("spoiled")
    assert (ended.code, f"{WEIGHTS} is not what the Hub has" in ended.output) == (5, True)
    assert not (tmp_path / "spoiled").exists()
    assert train("spoiled").code == 0


@pytest.mark.parametrize(
    ("fault", "code", "shown"),
    [
        ("gated", 3, "org/gated is gated"),
        ("private", 2, "no model 'org/private' on the Hub, or it is private"),
        ("down", 3, "not in the local cache and the Hub cannot be reached"),
        ("portal", 3, "the responses do not come from the Hub"),
    ],
)
def test_each_refusal_has_its_own_message(train, tmp_path: Path, fault: str, code: int, shown: str) -> None:  # type: ignore[no-untyped-def]
    ended = train(fault)
    assert (ended.code, shown in ended.output) == (code, True), ended.output
    assert not (tmp_path / fault).exists()
