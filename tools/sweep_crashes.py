"""Every kill point of every stage: where SIGKILL strikes, does the same command end in the same bytes afterwards?

    PYTHONPATH=pipeline:. python tools/sweep_crashes.py [--jobs train,merge] [--workers 2] [--out results.json]

The method is tests/faults/harness.py's. Exit code 0 if every point was recovered from, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.harness import JOBS, Laboratory, Outcome


def sweep(laboratory: Laboratory, jobs: list[str], share: int, shares: int) -> list[Outcome]:
    """Try every `shares`-th point of each job, from number `share` on."""
    outcomes = []
    for job in jobs:
        for point in laboratory.points(job)[share::shares]:
            outcomes.append(laboratory.attempt(point))
            if not outcomes[-1].recovered:
                print(f"{point}\n    {outcomes[-1].fault}", flush=True)
        print(f"worker {share + 1}: {job} done", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Sweep, print a table, and say whether all was recovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of " + ", ".join(JOBS))
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--out", type=Path, help="write the counts here as JSON")
    given = parser.parse_args()
    jobs = given.jobs.split(",")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aegis-crashes-") as folder:
        laboratories: list[Laboratory] = []
        for number in range(given.workers):
            place = Path(folder) / str(number)
            place.mkdir()
            laboratories.append(Laboratory(place, laboratories[0].base if laboratories else None))
        with ThreadPoolExecutor(given.workers) as pool:
            shares = [
                pool.submit(sweep, laboratory, jobs, number, given.workers)
                for number, laboratory in enumerate(laboratories)
            ]
            outcomes = [outcome for share in shares for outcome in share.result()]
        counts = {}
        for job in jobs:
            of_job = [outcome for outcome in outcomes if outcome.point.job == job]
            operations = len(laboratories[0].operations(job))
            counts[job] = {
                "operations": operations,
                "kill_points": len(of_job),
                "recovered": sum(outcome.recovered for outcome in of_job),
            }
        for laboratory in laboratories:
            laboratory.close()
    counts["all"] = {key: sum(count[key] for count in counts.values()) for key in counts[jobs[0]]}
    print(f"{'':<8}{'operations':>12}{'kill points':>13}{'recovered':>11}")
    for job, count in counts.items():
        print(f"{job:<8}{count['operations']:>12}{count['kill_points']:>13}{count['recovered']:>11}")
    print(f"{time.monotonic() - began:.0f} s")
    if given.out:
        given.out.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return 0 if counts["all"]["recovered"] == counts["all"]["kill_points"] else 1


if __name__ == "__main__":
    sys.exit(main())
