"""A coverage-guided fuzzer for AEGIS's parsers, with libFuzzer through atheris, from sound files and a seed.

    python -m tests.faults.guided --base BASE --gguf FILE --work FOLDER [--runs 20000] [--seed 0] [--only NAME ...]

The modules of aegis and vendor_llama_cpp are instrumented when they are loaded, and an input that reaches new code is
kept and mutated further. Each case is watched like the generated ones (hostile.py). Prints one JSON object per target;
each target has a forked process, because libFuzzer ends its process.

`--blind` switches the instrumentation off: the same mutations with the same seed, without feedback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from tests.faults.hostile import Target

INSTRUMENTED = ["aegis", "vendor_llama_cpp", "tests.faults.planted"]
_HANG_S = 60
_SHOWN = 10


def fuzz(target: Target, runs: int, seed: int, longest: int, work: Path, report: Path) -> None:
    """Feed `runs` inputs and end this process; the report exists if it got that far."""
    from tests.faults.hostile import watch

    corpus, place = work / "corpus", work / "fed"
    for folder in (corpus, place):
        folder.mkdir(parents=True)
    for number, honest in enumerate(target.seeds):
        (corpus / f"honest-{number}").write_bytes(honest)
    cases = accepted = most_bytes = 0
    slowest = 0.0
    faults: dict[str, str] = {}

    def one(data: bytes) -> None:
        nonlocal cases, accepted, most_bytes, slowest
        seen = watch(target, target.case(data), place)
        cases += 1
        accepted += seen.accepted
        slowest, most_bytes = max(slowest, seen.seconds), max(most_bytes, seen.more_bytes)
        if seen.fault and len(faults) < _SHOWN:
            faults.setdefault(seen.fault, data.hex())
        if cases == runs:
            counts = {"cases": cases, "refused": cases - accepted, "slowest s": slowest, "most bytes": most_bytes}
            kept = len(list(corpus.iterdir()))
            report.write_text(json.dumps({**counts, "kept": kept, "faults": faults}), encoding="utf-8")
            os._exit(0)

    options = [f"-seed={seed}", f"-max_len={longest}", f"-timeout={_HANG_S}", "-rss_limit_mb=0", "-verbosity=0"]
    # one that is never reached: the counter above ends it
    atheris.Setup([sys.argv[0], f"-runs={2 * runs}", *options, f"-artifact_prefix={work}/", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """Fuzz every target, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of a base")
    parser.add_argument("--gguf", type=Path, required=True, help="a GGUF made from it")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=4096, help="bytes of an input")
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--blind", action="store_true", help="without instrumentation, for comparison")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    # a child of fork has none of its parent's threads, and would wait for them
    os.environ["OMP_NUM_THREADS"] = "1"
    with nullcontext() if given.blind else atheris.instrument_imports(include=INSTRUMENTED):
        from tests.faults import hostile, planted

    (given.work / "honest").mkdir(parents=True)
    known = [planted.TARGET] if given.only == ["planted"] else hostile.targets(
        given.base, given.gguf, given.work / "honest"
    )  # fmt: skip
    for number, target in enumerate(known):
        if not target.seeds or (given.only and target.name not in given.only):
            continue
        report = given.work / f"{number}.json"
        child = os.fork()
        if not child:
            # libFuzzer tells of its progress; what counts is the report
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            # libFuzzer takes a seed of 0 for the clock's
            fuzz(target, given.runs, given.seed + 1, given.longest, given.work / str(number), report)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ended = {"cases": 0, "refused": 0, "slowest s": 0, "most bytes": 0, "kept": 0}
        ended["faults"] = {f"the process ended with {code}": ""}
        print(json.dumps({"target": target.name, **(json.loads(report.read_bytes()) if code == 0 else ended)}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
