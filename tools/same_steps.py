"""Trains the same compiled steps in several processes at once and compares the bits that they end with.

`bench_two_gpus` calls it. Each process begins with an empty cache of compiled code. In the first round each measures
the variants of every kernel by itself; in the second all have the choices of the first round's first process.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from two_gpu_runs import Bench, OutOfTimeError, end, environment


def compare(bench: Bench, settings: dict[str, Any], processes: int, gpus: int) -> dict[str, Any]:
    """Run both rounds and, in the second, one process with another seed: the control, which must differ."""
    folder = bench.work / "choices"
    folder.mkdir()
    own = _round(bench, "own", [settings] * processes, gpus, lambda number: (folder if number == 0 else None, None))
    found = {"own": own}
    other = settings | {"seed": 7}
    kept = _round(bench, "kept", [*[settings] * processes, other], gpus, lambda _: (None, folder))
    seed = other["seed"]
    found |= {
        "kept": [one for one in kept if one["seed"] != seed],
        "control": [one for one in kept if one["seed"] == seed],
    }
    for name in ("own", "kept"):
        sizes = sorted(Counter(one["hash"] for one in found[name]).values(), reverse=True)
        found[f"{name}_groups"] = sizes
        print(
            f"  {name} choices: {len(found[name])} processes ended with the same bits in groups of {sizes}", flush=True
        )
    return found


def _round(bench: Bench, name: str, all_settings: list[dict[str, Any]], gpus: int, files: Any) -> list[dict[str, Any]]:
    left = bench.seconds_left(45)
    began = time.monotonic()
    children = []
    for number, settings in enumerate(all_settings):
        write, read = files(number)
        arguments = [json.dumps(settings), str(write or ""), str(read or "")]
        log = (bench.work / f"same-{name}-{number}.log").open("w+")
        variables = environment(bench.on_gpu, str(number % gpus)) | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        children.append((child, log))
    ends = []
    for number, (child, log) in enumerate(children):
        try:
            out, _ = child.communicate(timeout=max(1, left - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            out = ""
        finally:
            end(child)
        found = [json.loads(line) for line in out.splitlines() if line.startswith('{"seed"')]
        log.seek(0)
        if not found:
            print(f"  {name} {number}: no result\n{log.read()[-1500:]}", flush=True)
        ends += found
    print(f"  {name}: {len(ends)} of {len(children)} processes, {time.monotonic() - began:.0f} s", flush=True)
    if not ends:
        raise OutOfTimeError(f"no process of the round {name!r} has ended")
    return ends


def steps(settings: dict[str, Any], write: str, read: str) -> dict[str, Any]:
    """Take the steps in this process; return the hash of what was trained, the last loss, the number of choices."""
    import torch

    from aegis.config.train_settings import TrainConfig
    from aegis.data.training_set import load_training_set
    from aegis.model.base import find_base, load_tokenizer
    from aegis.model.device import choose_device
    from aegis.training.build_state import build_state
    from aegis.training.execution.compiler_choices import FILE, load_choices, save_choices
    from aegis.training.loop import Loop

    config = TrainConfig(**settings)
    base = find_base(config.base_model)
    data = load_training_set(config, load_tokenizer(base.folder))
    with build_state(config, base, choose_device(config.device), None) as state:
        if read:
            load_choices(Path(read))
        outcome = Loop(state, config, data.train, None).run(0, config.max_steps)
        bits = hashlib.sha256()
        for name, parameter in sorted(state.parameters().items()):
            bits.update(name.encode() + parameter.detach().float().cpu().contiguous().numpy().tobytes())
        folder = Path(write) if write else None
        if folder and state.options.compiled:
            save_choices(folder)
        file = Path(read or write or ".") / FILE
        choices = len(json.loads(file.read_text())) if file.is_file() else None
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return {
            "seed": config.seed,
            "hash": bits.hexdigest()[:16],
            "loss": outcome.loss,
            "choices": choices,
            "peak": peak,
        }


if __name__ == "__main__":
    print(json.dumps(steps(json.loads(sys.argv[1]), *sys.argv[2:])), flush=True)
