"""Load: many rows, many or large shards, full-size files, many steps, many exports. Is memory bounded, does it pile up?

    PYTHONPATH=pipeline:. python tools/sweep_load.py rows    [--count 1000000]
    PYTHONPATH=pipeline:. python tools/sweep_load.py shards  [--count 500]
    PYTHONPATH=pipeline:. python tools/sweep_load.py shard   [--count 8]        (GB; twice that on disk)
    PYTHONPATH=pipeline:. python tools/sweep_load.py sparse  [--count 8]        (GB, in holes)
    PYTHONPATH=pipeline:. python tools/sweep_load.py steps   [--count 20000]
    PYTHONPATH=pipeline:. python tools/sweep_load.py exports [--count 50]

Prints one line of numbers; peak memory is the command's own, base interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from aegis.model.adapter import CONFIG, WEIGHTS
from aegis.model.shard_writer import ShardWriter, write_index
from aegis.model.shards import SINGLE, ShardSet
from aegis.runs.run import Run
from aegis.soul.file import load_soul, save_soul
from tests.faults.forked import Ended
from tests.faults.harness import Laboratory
from tests.faults.sparse import sparse_base, sparse_gguf
from tests.made_once import Once

_LAYER = "model.layers.{}.mlp.gate_up_proj.weight"


def rows(laboratory: Laboratory, place: Path, count: int) -> str:
    """Prepare so many rows of text, and a tenth of them to compare with."""
    output = []
    for number in (count // 10, count):
        data = place / f"{number}.jsonl"
        write_rows(data, number)
        began = time.monotonic()
        ended = laboratory.forked.aegis(place, *laboratory.arguments("train"), "--dataset", data, "--run", str(number))
        assert ended.code == 0, ended.output
        output.append(f"{number} rows ({data.stat().st_size / 1e6:.0f} MB): {time.monotonic() - began:.0f} s, ")
        output.append(f"peak {ended.peak_bytes / 1e6:.0f} MB; ")
    return "".join(output)


def write_rows(path: Path, count: int) -> None:
    """So many different rows of one sentence or two."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            file.write(json.dumps({"text": f"{row}番目の本でござる。春の花は桜です。"}, ensure_ascii=False) + "\n")


def merge_into(laboratory: Laboratory, place: Path, base: Path) -> Ended:
    """Merge an adapter of the tiny base, its soul without the name of its base, into a larger one."""
    run = Run(place / "run")
    small = laboratory.forked.aegis(place, *laboratory.arguments("train"))
    assert small.code == 0, small.output
    adapter = place / "plain"
    adapter.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(run.adapter / name, adapter / name)
    _forget_base(run.adapter / "soul.safetensors", adapter / "soul.safetensors")
    merging = ["merge", "--base-model", base, "--adapter", adapter, "--out", place / "merged"]
    ended = laboratory.forked.aegis(place, *merging)
    assert ended.code == 0, ended.output
    return ended


def _merged(laboratory: Laboratory, place: Path, shown: str) -> str:
    base = place / "base"
    began = time.monotonic()
    ended = merge_into(laboratory, place, base)
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return f"{shown}, {size / 1e9:.2f} GB merged in {seconds:.0f} s, peak {ended.peak_bytes / 1e6:.0f} MB"


def _forget_base(source: Path, target: Path) -> None:
    save_soul(target, replace(load_soul(source), base_hash=""))


def larger_base(own_base: Path, base: Path, extra: list[tuple[str, tuple[int, int]]], shards: int) -> None:
    """The tiny base with more tensors in so many files; they are layers that its config does not count."""
    shutil.copytree(own_base, base)
    own = ShardSet.open(own_base)
    (base / SINGLE).unlink()
    names = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    weight_map = {}
    total = 0
    for number, file in enumerate(names):
        mine = list(own.entries.values()) if not number else []
        more = extra[number::shards]
        specs = [(e.name, e.dtype, e.shape) for e in mine] + [(name, torch.bfloat16, shape) for name, shape in more]
        with ShardWriter(base / file, specs) as writer:
            for entry in mine:
                writer.write(entry.read())
            for _, (height, width) in more:
                for start in range(0, height, 4096):
                    writer.write(torch.zeros(min(4096, height - start), width, dtype=torch.bfloat16))
            total += writer.bytes
        weight_map |= {name: file for name, _, _ in specs}
    write_index(base, weight_map, total)


def shards(laboratory: Laboratory, place: Path, count: int) -> str:
    """A base of so many shards of 1 MB."""
    extra = [(_LAYER.format(number + 1), (1024, 512)) for number in range(count)]
    larger_base(laboratory.base, place / "base", extra, count)
    return _merged(laboratory, place, f"{count} shards")


def shard(laboratory: Laboratory, place: Path, count: int) -> str:
    """A base of one shard of so many GB, in tensors of 256 MB."""
    extra = [
        (_LAYER.format(number + 1), (16384, 8192)) for number in range(count * 1_000_000_000 // (16384 * 8192 * 2))
    ]
    larger_base(laboratory.base, place / "base", extra, 1)
    shown = _merged(laboratory, place, "1 shard")
    with safe_open(place / "merged" / "model-00001-of-00001.safetensors", "pt") as merged:
        assert len(merged.keys()) == len(extra) + len(ShardSet.open(laboratory.base).entries)
    return shown


def sparse(laboratory: Laboratory, place: Path, count: int) -> str:
    """A base and a GGUF of so many GB with holes for values, and the GGUF cut in half: plan and verify."""
    base = sparse_base(laboratory.base, place / "base", count * 1_000_000_000)
    file = sparse_gguf(base, place / "model.gguf")
    rows = place / "rows.jsonl"
    write_rows(rows, 100)
    output = [f"{(base / SINGLE).stat().st_size / 1e9:.2f} GB and {file.stat().st_size / 1e9:.2f} GB: "]
    planning = ("plan", "--base-model", base, "--dataset", rows, "--device", "cpu")
    for name, arguments, code in (
        ("plan", planning, 0),
        ("verify of the base", ("verify", base), 0),
        ("verify of the GGUF", ("verify", file), 0),
        ("verify of half of it", ("verify", file), 5),
    ):
        if code:
            os.truncate(file, file.stat().st_size // 2)
        began = time.monotonic()
        ended = laboratory.forked.aegis(place, *arguments)
        assert ended.code == code, ended.output
        output.append(f"{name} {time.monotonic() - began:.0f} s, peak {ended.peak_bytes / 1e6:.0f} MB; ")
    return "".join(output)


def steps(laboratory: Laboratory, place: Path, count: int) -> str:
    """So many steps, each logged, with a checkpoint every hundredth: the speed tenth by tenth, memory and disk.

    All ten, since a machine with other work is slower now and then: a run that slows down does so all the way.
    """
    arguments = [*laboratory.arguments("train"), "--max-steps", count, "--save-steps", "100", "--keep-checkpoints", "2"]
    ended = laboratory.forked.aegis(place, "--quiet", *arguments)
    assert ended.code == 0, ended.output
    run = Run(place / "run")
    logged = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in logged] == list(range(1, count + 1))
    speeds = [row["tokens_per_second"] for row in logged]
    tenth = count // 10
    medians = [sorted(speeds[start : start + tenth])[tenth // 2] for start in range(0, 10 * tenth, tenth)]
    early, late = logged[tenth - 1]["peak_bytes"], logged[-1]["peak_bytes"]
    size = sum(path.stat().st_size for path in run.root.rglob("*") if path.is_file())
    kept = len(list(run.checkpoints.iterdir()))
    return (
        f"{count} steps: median tokens/s by tenth {' '.join(f'{median:.0f}' for median in medians)}; "
        f"memory {early / 1e6:.0f} MB after a tenth, {late / 1e6:.0f} MB in the end; "
        f"{kept} checkpoints, run {size / 1e6:.1f} MB, {run.metrics.stat().st_size / 1e6:.1f} of it metrics.jsonl"
    )


def exports(laboratory: Laboratory, place: Path, count: int) -> str:
    """So many exports in one process, with the real converter and quantizer."""
    import psutil

    from aegis.config.settings import ExportConfig
    from aegis.stages.export import export_gguf

    merged = laboratory.start("verify") / "run" / "merged"
    process = psutil.Process()

    def state() -> dict[str, int]:
        return {
            "files": process.num_fds(),
            "threads": process.num_threads(),
            "children": len(process.children(recursive=True)),
            "temporary": len(list(Path(tempfile.gettempdir()).iterdir())),
            "MB": process.memory_info().rss // 1_000_000,
        }

    output = []
    for number in range(count):
        export_gguf(merged, place / "gguf", ExportConfig(quant=("Q8_0",)), overwrite=True)
        if number in (min(2, count - 1), count - 1):
            output.append(f"after {number + 1}: {state()}")
    return "; ".join(output)


JOBS: dict[str, tuple[Callable[[Laboratory, Path, int], str], int]] = {
    "rows": (rows, 1_000_000),
    "shards": (shards, 500),
    "shard": (shard, 8),
    "sparse": (sparse, 8),
    "steps": (steps, 20_000),
    "exports": (exports, 50),
}


def main() -> int:
    """Run one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    job, usual = JOBS[given.job]
    with tempfile.TemporaryDirectory(prefix="aegis-load-") as folder:
        (Path(folder) / "laboratory").mkdir()
        (Path(folder) / "place").mkdir()
        laboratory = Laboratory(Path(folder) / "laboratory", Once(Path(folder) / "once"))
        try:
            print(job(laboratory, Path(folder) / "place", given.count or usual), flush=True)
        finally:
            laboratory.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
