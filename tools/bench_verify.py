"""What verify's exact checks take at the full Phi-3.5-mini shape, beside llama.cpp's quantizer on the same cores.

    PYTHONPATH=pipeline:.:tools python tools/bench_verify.py --template FOLDER [--layers 2] [--out FILE.json]

FOLDER is the base without weights (config.json, tokenizer files); the weights are random numbers of the real shapes. A
training of one short step, merge and export make a run, in this process. Then another process derives the merged
folder, the f16 file and the quantized one again and compares them, as `aegis verify` does before it runs any model; its
time, and the memory that it and its tools own at their peak, are sampled from outside. 3.8 B parameters need 35 GB of
disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_train import write_short
from benchmark import measured_on, parser, quiet_and_offline, scratch
from full_size import copy_template, meta_model, write_base
from watched_steps import Record

_CHECKER = """
import sys, time
from pathlib import Path
from aegis.model.trained_base import trained_base
from aegis.runs.manifest import read_manifest
from aegis.runs.run import Run
from aegis.verification.run_checks import Checks
from aegis.verification.structure import Structure
run, work = Run(Path(sys.argv[1])), Path(sys.argv[2])
base, checks = trained_base(run.adapter), Checks()
places = {"train": run.adapter, "merge": run.merged, "convert": run.gguf}
manifests = {stage: read_manifest(place) for stage, place in places.items()}
structure = Structure(run, base, manifests, checks, base.tokenizer(), None, work / "f16.gguf", None)
for name in ("trained", "merged", "converted", "quantized"):
    began = time.monotonic()
    getattr(structure, f"_check_{name}")()
    print(name, round(time.monotonic() - began, 1), checks.ok, flush=True)
sys.exit(not checks.ok)
"""


def make_run(base: Path, work: Path, record: Record) -> Any:
    """Train one step, merge and export; the steps' times are recorded."""
    from aegis.config.settings import ExportConfig, MergeConfig
    from aegis.config.train_settings import TrainConfig
    from aegis.runs.run import Run
    from aegis.stages.export import export_gguf
    from aegis.stages.merge import MergeInputs, merge
    from aegis.stages.train import train

    run = Run(work / "run")
    write_short(work / "short.jsonl")
    config = TrainConfig(
        base_model=str(base), dataset=str(work / "short.jsonl"), device="cpu", max_steps=1, max_length=16,
        keep_weight=0.0, heldout_rows=0, warmup_steps=0, annealing_steps=1,
    )  # fmt: skip
    with record.step("train one step"):
        train(config, run)
    with record.step("merge"):
        merge(MergeInputs.from_run(run), run.merged, MergeConfig())
    with record.step("export"):
        export_gguf(run.merged, run.gguf, ExportConfig())
    return run


def main() -> int:
    """Make the run, time its checks, print a table last."""
    arguments = parser(__doc__, "bench_verify.json").parse_args()
    quiet_and_offline()
    with scratch("aegis-bench-", arguments.work) as work:
        os.environ["AEGIS_CACHE_DIR"] = str(work / "cache")
        base = work / "phi-3.5-mini"
        copy_template(arguments.template, base, arguments.layers)
        record = Record(work)
        with record.step("write base"):
            write_base(meta_model(base), base)
        run = make_run(base, work, record)
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-c", _CHECKER, str(run.root), str(work)], stdout=subprocess.PIPE, text=True
        )
        with record.step("exact checks", child.pid):
            printed, _ = child.communicate()
        seconds = round(time.monotonic() - began, 1)
    quantizer = next(row for row in record.rows if row.role == "quantizer")
    checks = [row for row in record.rows if row.step == "exact checks"]
    results = {
        **measured_on(),
        "layers": arguments.layers,
        "checks": dict(line.split()[:2] for line in printed.splitlines()),
        "exact_checks_s": seconds,
        "quantizer_s": quantizer.seconds,
        "own_gib": {row.role or "aegis": round(row.own_bytes / 2**30, 2) for row in checks},
        "found_right": child.returncode == 0,
    }
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{'check':<12}{'seconds':>9}")
    for name, taken in results["checks"].items():
        print(f"{name:<12}{taken:>9}")
    times = seconds / max(0.1, quantizer.seconds)
    print(f"all checks {seconds} s, the quantizer {quantizer.seconds} s: {times:.2f} times")
    print("memory of its own, GiB:", results["own_gib"])
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
