"""Tests of the set-up with the real uv and an index on this machine: no compiler, no git, empty caches."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from startup.records import broken

from tests.tools import small_project as small

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and paths")


@dataclass
class Checkout:
    """A small project, and how to call its start.py."""

    root: Path
    environment: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.root / "tools" / "start.py"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self.environment, **self.extra},
            start_new_session=True,
        )

    def start(self, *arguments: str) -> tuple[int, str]:
        process = self.begin(*arguments)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    @property
    def site_packages(self) -> Path:
        return next((self.root / ".venv" / "lib").glob("python3*")) / "site-packages"

    def packages(self) -> set[str]:
        return {folder.name.partition("-")[0] for folder in self.site_packages.glob("*.dist-info")}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("index")
    small.write_index(folder)
    with small.served(folder) as address:
        yield folder, address


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binding's wheel, beside the index, because the public index does not have it either."""
    found = small.binding_wheel(tmp_path_factory.mktemp("wheel"))
    if found is None:
        pytest.skip("llama-cpp-python is not installed")
    return found


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = small.uv_program(tmp_path_factory.mktemp("uv"))
    if found is None:
        pytest.skip("uv is neither here nor to be fetched")
    return found


@pytest.fixture
def checkout(tmp_path: Path, index: tuple[Path, str], wheel: Path, uv: Path) -> Iterator[Checkout]:
    small.write_project(tmp_path / "clone", index[0])
    with small.served(wheel.parent) as address:
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        environment = small.bare_environment(tmp_path, index[1], uv)
        environment["AEGIS_LLAMA_WHEEL"] = f"{address}/{wheel.name}#sha256={sha256}"
        yield Checkout(tmp_path / "clone", environment)


def test_a_bare_machine_is_set_up_without_a_compiler(checkout: Checkout) -> None:
    code, out = checkout.start("setup")
    assert code == 0, out
    assert "nothing to compile" in out
    assert "Ready. The command is" in out
    aegis = [checkout.root / ".venv" / "bin" / "aegis"]
    ran = subprocess.run(aegis, capture_output=True, text=True, env=checkout.environment, check=True)
    assert ran.stdout == "AEGIS runs\n"
    assert "devtool" not in checkout.packages()
    assert checkout.start("demo") == (0, "AEGIS runs\n"), "a second start has nothing to do"


def test_the_tests_packages_come_with_the_test_command_and_stay(checkout: Checkout) -> None:
    code, out = checkout.start("test")
    assert code != 0, "ruff is not in this index, so the checks cannot pass"
    assert "devtool" in checkout.packages(), out
    with (checkout.root / "pyproject.toml").open("a", encoding="utf-8") as stream:
        stream.write("# edited\n")
    code, out = checkout.start("setup")
    assert code == 0, out
    stamp = json.loads((checkout.root / ".venv" / "start" / "stamp.json").read_text(encoding="utf-8"))
    assert stamp["extra"] == "dev"


def test_a_wheel_with_another_hash_is_refused(checkout: Checkout) -> None:
    """Then llama.cpp would be compiled; without a compiler that is exit 3 with the command that installs one."""
    place, _, _ = checkout.environment["AEGIS_LLAMA_WHEEL"].partition("#")
    checkout.extra["AEGIS_LLAMA_WHEEL"] = f"{place}#sha256={'0' * 64}"
    code, out = checkout.start("setup")
    assert code == 3, out
    assert "Hash mismatch" in out
    assert "No C/C++ compiler" in out
    assert "build-essential" in out or sys.platform == "darwin"
    assert not list(checkout.site_packages.glob("llama_cpp*"))
    checkout.extra.clear()
    code, out = checkout.start("setup")
    assert code == 0, out


def test_a_library_that_does_not_run_on_this_machine_is_not_kept(checkout: Checkout, tmp_path: Path) -> None:
    library = {"llama_cpp/__init__.py": b"", "llama_cpp/lib/libggml-cpu.so": b"for another processor"}
    bad = small.write_wheel(tmp_path, small.BINDING, "0.3.36", library)
    checkout.extra["AEGIS_LLAMA_WHEEL"] = str(bad)
    code, out = checkout.start("setup")
    assert code == 3, out
    assert not list(checkout.site_packages.glob("llama_cpp*"))


def test_another_file_than_the_locked_one_is_refused(checkout: Checkout) -> None:
    constraints = checkout.root / "tools" / "constraints.txt"
    text = constraints.read_text(encoding="utf-8")
    before = text[text.index("peft==1.0") :].split("sha256:")[1][:64]
    constraints.write_text(text.replace(before, "0" * 64), encoding="utf-8")
    code, out = checkout.start("setup")
    assert code == 7, out
    assert "hash tools/constraints.txt holds" in out
    assert "peft" not in checkout.packages()


def test_an_unreachable_index_is_reported_and_the_next_start_continues(checkout: Checkout) -> None:
    checkout.extra["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
    checkout.extra["UV_HTTP_RETRIES"] = "0"
    code, out = checkout.start("setup")
    assert code == 7, out
    assert "did not answer" in out
    checkout.extra.clear()
    code, out = checkout.start("setup")
    assert code == 0, out


@pytest.mark.parametrize(
    ("how", "step", "later_s"),
    [
        *((signal.SIGKILL, step, 0.2) for step in range(1, 7)),
        *((signal.SIGKILL, 4, later_s) for later_s in (0.0, 0.6)),  # the longest step
        *((how, 4, 0.1) for how in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_a_start_that_is_interrupted_anywhere_is_finished_by_the_next(
    checkout: Checkout, how: signal.Signals, step: int, later_s: float
) -> None:
    """Killed with everything it started, as by a power cut, or stopped as a person does."""
    process = checkout.begin("setup")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"[{step}/"):
            break
    time.sleep(later_s)
    everything = psutil.Process(process.pid).children(recursive=True) if how == signal.SIGKILL else []
    process.send_signal(how)
    for child in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    rest = process.communicate(timeout=60)[0]
    assert how == signal.SIGKILL or process.returncode in (0, 128 + how), rest
    assert process.returncode <= 0 or "Start again to go on" in rest
    was_ready = (checkout.root / ".venv" / "start" / "stamp.json").exists()
    code, out = checkout.start("demo")
    assert code == 0, out
    assert ("[1/" in out) != was_ready, "the stamp is there if and only if nothing is left to do"
    assert out.endswith("AEGIS runs\n")
    assert broken(checkout.site_packages) == []
    assert {*small.STAND_INS, "llama_cpp_python", "aegis_soul"} <= checkout.packages()


def test_setup_repairs_a_changed_file(checkout: Checkout) -> None:
    """Of the same size, so that only its hash tells; the stamp still says ready."""
    assert checkout.start("demo")[0] == 0
    module = checkout.site_packages / "peft" / "data.py"
    before = module.read_bytes()
    module.unlink()  # the cache has the same file under another name
    module.write_bytes(before.replace(b"1", b"2"))
    assert checkout.start("demo")[0] == 0
    assert module.read_bytes() != before, "the control: a start that trusts the stamp does not look"
    code, out = checkout.start("setup")
    assert code == 0, out
    assert module.read_bytes() == before


@pytest.mark.parametrize("name", ["peft", "llama_cpp_python"])
def test_a_package_that_a_killed_uv_left_without_its_files_is_installed_again(checkout: Checkout, name: str) -> None:
    assert checkout.start("setup")[0] == 0
    (checkout.root / ".venv" / "start" / "stamp.json").unlink()
    module = checkout.site_packages / {"llama_cpp_python": "llama_cpp"}.get(name, name) / "__init__.py"
    module.unlink()
    code, out = checkout.start("setup")
    assert code == 0, out
    assert f"to be installed again: {name}" in out
    assert module.is_file()
