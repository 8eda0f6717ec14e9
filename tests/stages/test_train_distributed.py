"""Tests of one training in two processes: equal to one process, written by one, and ended by both."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError
from aegis.runs.facts import TrainFacts
from aegis.runs.manifest import read_manifest
from aegis.runs.metrics import read_metrics
from aegis.runs.run import Run
from aegis.stages.train import train
from aegis.training import checkpoint
from aegis.training.planning.estimate import MemoryEstimator
from tests.conftest import MakeRandom
from tests.forking_torchrun import TIME_OUT_S, Ended, ForkingTorchrun, environment
from tests.trained import losses, small_training, write_chats

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals and torchrun are other things on Windows"),
    pytest.mark.usefixtures("shared_cache"),
    pytest.mark.timeout(900),  # several processes compile on one machine
]

CLOSE = 1e-4  # losses and weights in float32 after eight steps: 1e-6 was seen, another seed is 1e-2 and more away

# as `python -m aegis`, but something befalls one process within step 5
BEFALLEN = """
import os, signal
from aegis.cli import app
from aegis.training import step

launch = step.Stepper.launch

def befallen(self, number, batches, *arguments):
    if number == 4 and os.environ["RANK"] == "1":
        {event}
    return launch(self, number, batches, *arguments)

step.Stepper.launch = befallen
app.main()
"""
# as `accelerate config` writes it, with a precision that a CPU does not compute in
ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
fsdp_config:
  fsdp_version: 2
main_process_port: 0
mixed_precision: bf16
num_machines: 1
num_processes: 2
use_cpu: true
"""
NAN = "self._update.task_loss.zero_ = lambda: self._update.task_loss.fill_(float('nan'))"


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that Linux gives to no other program while the block runs, and at which torch can listen.

    It is bound, and nobody listens: others who set SO_REUSEADDR may bind it too, as torch does, if they name it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield port


@dataclass(frozen=True)
class Place:
    """The shared files of this module's runs, their folder, and what starts most of them."""

    folder: Path
    config: TrainConfig
    torchrun: ForkingTorchrun

    def run(self, name: str) -> Run:
        return Run(self.folder / name)

    def launched(
        self,
        run: Run,
        *arguments: str,
        event: str | None = None,
        json_output: bool = False,
        processes: int = 2,
        more: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run the config in processes forked by torchrun, each with half the forward passes; `more` are variables."""
        launch = self._launch(run, *arguments, event=event, json_output=json_output, processes=processes)
        (ended,) = self.torchrun(self.folder, launch, more=[more or {}])
        return ended

    def started(self, run: Run, *, event: str | None = None) -> Ended:
        """Run as `launched`, with torchrun's own processes."""
        _, *arguments = self._launch(run, event=event)
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIME_OUT_S,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def accelerated(self, run: Run, config: str) -> Ended:
        """Run as `launched`, by accelerate's launcher with this YAML as its config."""
        file = self.folder / "accelerate.yaml"
        file.write_text(config, encoding="utf-8")
        launcher = ["accelerate", "launch", "--config_file", str(file)]
        (ended,) = self.torchrun(self.folder, [*launcher, "-m", "aegis", "train", *self._settings(run)])
        return ended

    def two_machines(self, runs: tuple[Run, Run], *arguments: str) -> list[Ended]:
        """Run one process on each of two "machines", which have run folders and caches of their own."""
        command = ["-m", "--", "aegis", "train"]
        caches = [{"AEGIS_CACHE_DIR": str(run.root.with_suffix(".cache"))} for run in runs]
        with reserved_port() as port:
            where = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--nproc-per-node", "1"]
            launches = [
                ["torchrun", *where, "--node-rank", str(rank), *command, *self._settings(run), *arguments]
                for rank, run in enumerate(runs)
            ]
            return self.torchrun(self.folder, *launches, more=caches)

    def _launch(
        self, run: Run, *arguments: str, event: str | None, json_output: bool = False, processes: int = 2
    ) -> list[str]:
        program = ["-m", "--", "aegis"]
        if event is not None:
            script = self.folder / "befallen.py"
            script.write_text(BEFALLEN.format(event=event), encoding="utf-8")
            program = [str(script), "--"]
        command = ["--json", "train"] if json_output else ["train"]
        launcher = ["torchrun", "--standalone", "--nproc-per-node", str(processes)]
        return [*launcher, *program, *command, *self._settings(run), *arguments]

    def _settings(self, run: Run) -> list[str]:
        file = self.folder / f"{run.root.name}.toml"
        halved = self.config.model_dump(exclude_unset=True) | {"gradient_accumulation_steps": 1}
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in halved.items())
        file.write_text("[train]\n" + lines, encoding="utf-8")
        return ["--config", str(file), "--run", str(run.root)]


@pytest.fixture(scope="module")
def torchrun() -> Iterator[ForkingTorchrun]:
    made = ForkingTorchrun()
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(quick_base: Path, torchrun: ForkingTorchrun, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("together")
    config = small_training(quick_base, write_chats(folder / "data.jsonl"))
    return Place(folder, config.model_copy(update={"keep_checkpoints": 9, "sample_steps": "4"}), torchrun)


@pytest.fixture(scope="module")
def alone(place: Place) -> Run:
    """Return the training in one process."""
    run = place.run("alone")
    train(place.config, run)
    return run


@pytest.fixture(scope="module")
def whole(place: Place) -> Run:
    """Return the undisturbed training in two processes."""
    run = place.run("whole")
    ended = place.started(run)
    assert ended.code == 0, ended.err
    assert ended.out.count("next: aegis merge") == 1
    assert ended.err.count("held-out") == 4
    return run


@pytest.fixture(scope="module")
def bereft(place: Place) -> Run:
    """Return the training in two processes of which one was killed within step 5."""
    run = place.run("bereft")
    ended = place.started(run, event="os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.code != 0
    assert ended.err.count("aegis: another process of this training ended") == 1, ended.err
    assert "start the same command again" in ended.err
    assert "Traceback" not in ended.err.partition("aegis: another process")[0]
    return run


def apart(one: Run, other: Run) -> float:
    """Return the largest difference between two runs' losses, adapters and souls."""
    assert [step for step, _ in losses(one)] == [step for step, _ in losses(other)] == list(range(1, 9))
    pairs = [(torch.tensor(a), torch.tensor(b)) for (_, a), (_, b) in zip(losses(one), losses(other), strict=True)]
    for name in ("adapter_model.safetensors", "soul.safetensors"):
        ours, theirs = load_file(one.adapter / name), load_file(other.adapter / name)
        assert ours.keys() == theirs.keys()
        pairs += [(ours[key], theirs[key]) for key in ours]
    return max((a - b).abs().max().item() for a, b in pairs)


def same_bytes(one: Run, other: Run) -> bool:
    names = ("adapter_model.safetensors", "soul.safetensors")
    return losses(one) == losses(other) and all(
        (one.adapter / name).read_bytes() == (other.adapter / name).read_bytes() for name in names
    )


def test_two_processes_train_as_one_does(place: Place, alone: Run, whole: Run) -> None:
    """Dropout included: losses, adapter and soul are those of one process with twice the forward passes a step."""
    assert apart(whole, alone) < CLOSE
    other = place.run("other-seed")
    train(place.config.model_copy(update={"seed": 7}), other)
    assert apart(other, alone) > 10 * CLOSE


def test_only_one_process_writes_files(alone: Run, whole: Run) -> None:
    """The same files as of one process, a row of metrics a step, the same held-out losses and answers."""

    def files(run: Run) -> list[str]:
        return sorted(path.relative_to(run.root).as_posix() for path in run.root.rglob("*"))

    def heldout(run: Run) -> list[float | None]:
        return [json.loads(line)["heldout_loss"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]

    def answers(run: Run) -> list[tuple[int, str]]:
        return [(row["step"], row["answer"]) for row in read_metrics(run.answers)]

    assert files(whole) == files(alone)
    assert answers(whole) == answers(alone)
    assert {step for step, _ in answers(alone)} == {4, 8}
    assert heldout(whole)[1::2] == pytest.approx(heldout(alone)[1::2], abs=CLOSE)
    assert heldout(whole)[::2] == [None] * 4
    assert (TrainFacts.read(whole.adapter).processes, TrainFacts.read(alone.adapter).processes) == (2, 1)
    assert read_manifest(whole.adapter).identity == read_manifest(alone.adapter).identity


def test_a_killed_process_ends_the_run_and_two_processes_resume_exactly(
    place: Place, whole: Run, bereft: Run, tmp_path: Path
) -> None:
    found = checkpoint.newest_whole(bereft.checkpoints)
    assert found is not None
    assert checkpoint.step_of(found[0]) == 4
    assert not bereft.adapter.exists()
    run = Run(tmp_path / "run")
    shutil.copytree(bereft.root, run.root)
    ended = place.launched(run, "--resume")
    assert ended.code == 0, ended.err
    assert ended.err.count("resuming from step 4") == 1
    assert same_bytes(run, whole)


def test_two_machines_resume_from_the_checkpoint_of_one(place: Place, whole: Run, bereft: Run, tmp_path: Path) -> None:
    """The second machine has neither run nor caches, gets the checkpoint, and keeps nothing of it."""
    runs = Run(tmp_path / "first"), Run(tmp_path / "second")
    shutil.copytree(bereft.root, runs[0].root)
    for ended in place.two_machines(runs, "--resume"):
        assert ended.code == 0, ended.err
    assert same_bytes(runs[0], whole)
    assert not runs[1].root.exists()


def test_one_process_resumes_where_two_stopped(place: Place, whole: Run, bereft: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(bereft.root, run.root)
    assert train(place.config, run, resume=True).resumed_from == 4
    assert apart(run, whole) < CLOSE


def test_two_processes_resume_where_one_stopped(place: Place, alone: Run, tmp_path: Path) -> None:
    """The forward passes of a step are then shared between them."""
    run = Run(tmp_path / "run")
    shutil.copytree(alone.root, run.root)
    for step in (6, 8):
        shutil.rmtree(checkpoint.at(run.checkpoints, step))
    shutil.rmtree(run.adapter)
    ended = place.launched(run, "--resume")
    assert ended.code == 0, ended.err
    assert ended.err.count("resuming from step 4") == 1
    assert apart(run, alone) < CLOSE


def test_a_signal_to_one_ends_both_after_the_same_step(place: Place, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    ended = place.launched(run, event="os.kill(os.getpid(), signal.SIGTERM)")
    assert ended.code != 0
    assert ended.err.count("aegis: stopped after step 6 of 8; it is saved") == 1, ended.err
    assert "another process" not in ended.err
    found = checkpoint.newest_whole(run.checkpoints)
    assert found is not None
    assert checkpoint.step_of(found[0]) == 6


def test_a_nan_loss_in_one_process_ends_both(place: Place, tmp_path: Path) -> None:
    """Exit 6 in both, one message, and the checkpoint unchanged."""
    run = Run(tmp_path / "run")
    ended = place.launched(run, event=NAN)
    assert ended.code != 0
    assert ended.err.count("aegis: training diverged at step 5") == 1, ended.err
    assert "another process" not in ended.err
    found = checkpoint.newest_whole(run.checkpoints)
    assert found is not None
    assert checkpoint.step_of(found[0]) == 4


def test_an_error_of_process_0_is_reported_once(place: Place, whole: Run) -> None:
    ended = place.launched(whole)
    assert ended.code != 0
    assert ended.err.count(f"aegis: the training in {whole.root} is finished") == 1, ended.err
    assert "another process" not in ended.err


@pytest.mark.parametrize(
    "settings", [(), ("--load-in", "16bit", "--activation-checkpointing", "on"), ("--compile", "on")], ids=" ".join
)
def test_a_sharded_base_gives_the_same_bytes(
    place: Place, make_random: MakeRandom, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """As the complete base with the same settings; with another seed the bytes differ. A process holds what plan
    estimates."""
    base = make_random("phi3", num_hidden_layers=2, num_key_value_heads=4)
    names = ("sharded", "complete", "other-seed")
    sharded, complete, other = (Run(tmp_path / name) for name in names)
    options = ("--base-model", str(base), *settings)
    # compiled code is shared by the processes of both runs
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    ended = place.launched(sharded, *options, "--shard-base", json_output=True, more=compiled)
    assert ended.code == 0, ended.err
    assert "each of 2 processes holds a shard of the base's layers" in ended.out
    assert "--shard-base no answers are written" in ended.out
    report = json.loads(ended.out.splitlines()[-1])["report"]
    config = place.config.model_copy(update={"load_in": "16bit" if "16bit" in settings else "4bit"})
    estimator = MemoryEstimator(base, config, "cpu")
    held = estimator.sharded_weights(2)
    assert report["memory"]["base"] == held.shard + held.replicated < estimator.base_bytes

    ended = place.launched(complete, *options, more=compiled)
    assert ended.code == 0, ended.err
    assert same_bytes(sharded, complete)
    # which resuming compares
    assert [read_manifest(run.adapter).config["shard_base"] for run in (sharded, complete)] == [True, False]
    if not settings:
        ended = place.launched(other, *options, "--shard-base", "--seed", "7")
        assert ended.code == 0, ended.err
        assert not same_bytes(other, complete)


def test_pairs_that_hold_a_base_together_give_the_same_bytes(
    place: Place, make_random: MakeRandom, tmp_path: Path
) -> None:
    """Two pairs of four processes each hold one base, and the result is that of four complete ones."""
    base = make_random("phi3", num_hidden_layers=2, num_key_value_heads=4)
    pairs, complete = Run(tmp_path / "pairs"), Run(tmp_path / "complete")
    for run, settings in ((pairs, ("--shard-base", "--shard-processes", "2")), (complete, ())):
        ended = place.launched(run, "--base-model", str(base), *settings, processes=4)
        assert ended.code == 0, ended.err
        assert ended.err.count("each of 2 processes holds a shard") == bool(settings)
    assert same_bytes(pairs, complete)
    # a third pair is not complete
    ended = place.launched(Run(tmp_path / "three"), "--shard-base", "--shard-processes", "2", processes=3)
    assert ended.code != 0
    assert ended.err.count("aegis: 3 processes cannot be divided into groups of 2") == 1, ended.err


def test_accelerates_plain_launch_trains_and_its_fsdp_is_refused_once(place: Place, whole: Run) -> None:
    plain, fsdp = place.run("accelerate"), place.run("accelerate-fsdp")
    ended = place.accelerated(plain, ACCELERATE.format(kind="MULTI_GPU"))
    assert ended.code == 0, ended.err
    assert ended.err.count("mixed_precision bf16 is not used: this device computes in float32") == 1
    assert same_bytes(plain, whole)
    ended = place.accelerated(fsdp, ACCELERATE.format(kind="FSDP"))
    assert ended.code != 0
    assert ended.err.count("accelerate's config asks for FSDP, which is not supported") == 1, ended.err
    assert not fsdp.adapter.exists()


def test_a_process_of_a_sharded_base_that_dies_ends_the_run(place: Place, whole: Run) -> None:
    """Resumed, it ends with the bytes of the undisturbed run with complete bases."""
    run = place.run("sharded-bereft")
    ended = place.launched(run, "--shard-base", event="os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.code != 0
    assert ended.err.count("aegis: another process of this training ended") == 1, ended.err
    assert "Traceback" not in ended.err.partition("aegis: another process")[0]
    ended = place.launched(run, "--shard-base", "--shard-offload", "--resume")
    assert ended.code == 0, ended.err
    assert ended.err.count("resuming from step 4") == 1
    assert same_bytes(run, whole)


def test_a_base_is_not_sharded_over_one_process(place: Place) -> None:
    with pytest.raises(UsageError, match="several processes"):
        train(place.config.model_copy(update={"shard_base": True}), place.run("sharded-alone"))
    with pytest.raises(ValueError, match="gathered anew in every step"):
        TrainConfig(shard_base=True, cuda_graphs="on")
    for setting in ({"shard_processes": 2}, {"shard_offload": True}):
        with pytest.raises(ValueError, match="is for a sharded base"):
            TrainConfig(**setting)
    TrainConfig(shard_base=True, compile="on", activation_checkpointing="off")
