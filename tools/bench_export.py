"""Time `aegis export-gguf` against llama.cpp's converter and quantizer run by hand, and see that it keeps to its disk.

    PYTHONPATH=pipeline:. python tools/bench_export.py --template FOLDER [--layers 2] [--runs 3] [--out results.json]

FOLDER is the base without weights: config.json and tokenizer files. The weights are random numbers of the real shapes.
By hand is the same converter and the same library's quantizer with all cores, one process each; ours adds the checks,
the hashes and the Modelfile. At 3.8 B parameters this takes 20 GB of disk and some ten minutes a round on two cores.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from bench_merge import Run, measure
from benchmark import measured_on, parser, quiet_and_offline, scratch
from full_size import copy_template, meta_model, write_base

from aegis.llama_cpp import QUANT_TYPES
from aegis.llama_cpp.converter_tree import CONVERTER, find_converter
from aegis.model.shards import ShardSet
from aegis.runs.facts import F16
from aegis.verification.gguf_checks import files_bytes

QUANTIZE = """
import ctypes, sys, llama_cpp
source, out, ftype = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = int(ftype), 0
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters)))
"""
OURS, BY_HAND = "aegis export-gguf", "by hand"


def prepare(folder: Path, template: Path, layers: int | None) -> None:
    """Write a folder as merge leaves one: no code named in its config."""
    copy_template(template, folder, layers)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_base(meta_model(folder), folder)


def commands(model: Path, out: Path, quants: list[str]) -> dict[str, list[str | Path]]:
    """What is run, by name; each makes `out` with a file for every type, by hand with the f16 file too."""
    f16 = out / "f16.gguf"
    python = f'"{sys.executable}"'
    script = [
        f'mkdir "{out}"',
        f'{python} "{find_converter() / CONVERTER}" "{model}" --outfile "{f16}" --outtype f16 --model-name "phi-3 x"',
        *(f'{python} -c \'{QUANTIZE}\' "{f16}" "{out / quant}.gguf" {QUANT_TYPES[quant]}' for quant in quants),
    ]
    flags = [part for quant in quants for part in ("--quant", quant)]
    return {
        BY_HAND: ["sh", "-c", " && ".join(script)],
        OURS: [sys.executable, "-m", "aegis", "--quiet", "export-gguf", "--model", model, "--out", out, *flags],
    }


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """Sample what stands under `folder` besides what stood there before."""
    before, seen, stop = _size(folder), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            seen.append(_size(folder) - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone or renamed since it was listed
            total += path.stat().st_size if path.is_file() else 0
    return total


def main() -> int:
    """Run both in turn, print the table, write the JSON; 1 if more disk was used than `files_bytes` gives."""
    options = parser(__doc__, "bench_export.json")
    options.add_argument("--quant", action="append", default=[], help="Q4_K_M if not given; several from one f16 file")
    arguments = options.parse_args()
    quiet_and_offline()
    quants = arguments.quant or ["Q4_K_M"]
    runs: list[Run] = []
    peak = 0
    with scratch("bench-export-", arguments.work) as work:
        model, out = work / "model", work / "out"
        prepare(model, arguments.template, arguments.layers)
        needed = files_bytes(model, ShardSet.open(model), [F16, *quants])
        for number in range(arguments.runs):
            print(f"round {number + 1} of {arguments.runs}")
            for name, command in commands(model, out, quants).items():
                with watched(work) as seen:
                    runs.append(measure(name, number, command, out))
                peak = max(peak, *seen) if name == OURS else peak
    by_hand = {run.round: run.seconds for run in runs if run.name == BY_HAND}
    ratio = statistics.median(run.seconds / by_hand[run.round] for run in runs if run.name == OURS)
    disk = f"{peak / 1e9:.2f} GB of disk, {needed / 1e9:.2f} GB by the estimate"
    print(f"\n{', '.join(quants)}: {ratio:.3f} times by hand; {disk}")
    document = {
        **measured_on(),
        "quants": quants,
        "times_by_hand": round(ratio, 3),
        "disk_peak_bytes": peak,
        "disk_needed_bytes": needed,
        "runs": [asdict(run) for run in runs],
    }
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(peak > needed)


if __name__ == "__main__":
    sys.exit(main())
