"""Every kill point of every stage: where SIGKILL strikes, does the same command end in the same bytes afterwards?

    PYTHONPATH=pipeline:. python tools/sweep_crashes.py [--jobs train,merge] [--workers 2] [--out results.json]
                                                        [--minutes 60] [--seed 0] [--unpainted]

With --minutes it stops there; the order is shuffled by --seed, so that what was tried is a sample of all. With
--unpainted a picture's file has its values: two thirds of a small training are its pictures.
The same for a disk that is full from some operation on: is it reported, does nothing half-written stay, and does the
same command end in the same bytes once there is room? The method is tests/faults/harness.py's. Exit code 0 if every
point was recovered from, else 1.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.harness import JOBS, Laboratory, Outcome
from tests.made_once import Once


def sweep(
    laboratory: Laboratory, jobs: list[str], share: int, shares: int, seed: int, end: float = math.inf
) -> list[Outcome]:
    """Try every `shares`-th point of each job, from number `share` on, in an order of the seed's, until `end`."""
    outcomes = []
    for job in jobs:
        points = [*laboratory.points(job), *laboratory.full_points(job)]
        random.Random(seed).shuffle(points)
        for point in points[share::shares]:
            if time.monotonic() > end:
                break
            try_ = laboratory.attempt_full if point.mode == "full" else laboratory.attempt
            outcomes.append(try_(point))
            if not outcomes[-1].recovered:
                print(f"{point}\n    {outcomes[-1].fault}", flush=True)
        of_job = [outcome for outcome in outcomes if outcome.point.job == job]
        recovered = sum(outcome.recovered for outcome in of_job)
        print(f"worker {share + 1}: {job}, {recovered} of {len(of_job)} recovered", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Sweep, print a table, and say whether all was recovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of " + ", ".join(JOBS))
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then")
    parser.add_argument("--unpainted", action="store_true", help="write pictures' values in place of pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--out", type=Path, help="write the counts here as JSON")
    given = parser.parse_args()
    jobs = given.jobs.split(",")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aegis-crashes-") as folder:
        once = Once(Path(folder) / "once")
        laboratories: list[Laboratory] = []
        for number in range(given.workers):
            place = Path(folder) / str(number)
            place.mkdir()
            laboratories.append(Laboratory(place, once, painted=not given.unpainted))
        with ThreadPoolExecutor(given.workers) as pool:
            shares = [
                pool.submit(sweep, laboratory, jobs, number, given.workers, given.seed, began + 60 * given.minutes)
                for number, laboratory in enumerate(laboratories)
            ]
            outcomes = [outcome for share in shares for outcome in share.result()]
        counts = {}
        for job in jobs:
            killed = [o for o in outcomes if o.point.job == job and o.point.mode != "full"]
            full = [o for o in outcomes if o.point.job == job and o.point.mode == "full"]
            counts[job] = {
                "operations": len(laboratories[0].operations(job)),
                "kill points": len(laboratories[0].points(job)),
                "killed at": len(killed),
                "recovered": sum(outcome.recovered for outcome in killed),
                "full disks": len(laboratories[0].full_points(job)),
                "filled at": len(full),
                "reported and recovered": sum(outcome.recovered for outcome in full),
            }
        for laboratory in laboratories:
            laboratory.close()
    counts["all"] = {key: sum(count[key] for count in counts.values()) for key in counts[jobs[0]]}
    print(" " * 8 + "".join(f"{name:>{len(name) + 3}}" for name in counts["all"]))
    for job, count in counts.items():
        print(f"{job:<8}" + "".join(f"{number:>{len(name) + 3}}" for name, number in count.items()))
    print(f"{time.monotonic() - began:.0f} s")
    if given.out:
        given.out.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return 0 if all(outcome.recovered for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
