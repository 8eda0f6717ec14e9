"""Compare `aegis plan`'s memory estimate with peaks that were measured on a GPU.

    PYTHONPATH=pipeline:. python tools/check_estimate.py --template FOLDER --measured results.json [--capability 9.0]

FOLDER holds the config.json of the base that was measured; results.json is what tools/bench_train.py --out wrote. No
GPU is needed here. Exit 1 if an estimate is more than a tenth off.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from aegis.config.train_settings import TrainConfig
from aegis.training.execution.options import ExecutionOptions
from aegis.training.planning.estimate import MemoryEstimator

BOUND = 0.1


def settings_of(name: str) -> dict[str, str]:
    """The settings in a row's name, "max_length=512 activation_checkpointing=off"."""
    given = dict(part.split("=", 1) for part in name.split())
    return {key: value for key, value in given.items() if key in TrainConfig.model_fields and key != "dataset"}


def compare(row: dict[str, Any], template: Path, capability: tuple[int, int]) -> float:
    """Print measured and estimated GiB of one row; returns how far off the estimate is, relative."""
    # the benchmark keeps nothing unless a row says so
    config = TrainConfig.model_validate({"keep_weight": 0, **settings_of(row["name"])})
    options = ExecutionOptions(**row["options"])
    found = MemoryEstimator(template, config, "cuda", capability).estimate(config.max_length, options)
    estimated = found.peak / 2**30
    off = estimated / row["peak_gib"] - 1
    print(f"{row['name']:<62} measured {row['peak_gib']:7.2f}  estimated {estimated:7.2f} GiB  {off:+.1%}", flush=True)
    return off


def main(argv: list[str]) -> int:
    """Compare every row that has a peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--measured", type=Path, required=True, help="what bench_train.py --out wrote")
    parser.add_argument("--capability", default="9.0", help="of the GPU; an H200's is 9.0")
    arguments = parser.parse_args(argv)
    major, _, minor = arguments.capability.partition(".")
    rows = [row for row in json.loads(arguments.measured.read_text(encoding="utf-8"))["rows"] if "peak_gib" in row]
    if not rows:
        print("no row has a peak")
        return 1
    worst = max(abs(compare(row, arguments.template, (int(major), int(minor)))) for row in rows)
    print(f"worst {worst:.1%}, bound {BOUND:.0%}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
