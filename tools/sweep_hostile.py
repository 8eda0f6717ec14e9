"""Hostile and broken input by the thousand, and damaged files: what is accepted that should not be?

    PYTHONPATH=pipeline:. python tools/sweep_hostile.py [--cases 250] [--damages 1000] [--seed 0] [--out results.json]
                                                        [--guided 20000]

First every parser of tests/faults/hostile.py gets `--cases` generated inputs; none may end in a traceback, take more
than five seconds of processor time or 400 MB, or write outside its folder. With --guided, the parsers of bytes then get
so many inputs each from the coverage-guided fuzzer (tests/faults/guided.py; it needs atheris), held to the same. Then a
finished run is damaged `--damages` times (a bit, a byte, a hole of zeros, an end cut off, something appended, a file
gone), and its manifests must notice each time. Exit code 0 if nothing slipped through, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from aegis.errors import IntegrityError
from aegis.runs.manifest import MANIFEST, verify_directory
from tests.faults.harness import Laboratory
from tests.faults.hostile import Target, Watched, targets, watch
from tests.made_once import Once


def feed(target: Target, cases: int, number: int, folder: Path) -> list[Watched]:
    """Watch a parser take so many cases."""
    seen: list[Watched] = []

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def one(case: object) -> None:
        seen.append(watch(target, case, folder))
        if seen[-1].fault:
            print(f"{target.name}: {seen[-1].fault}\n    {str(case)[:300]}", flush=True)

    one()
    return seen


def fuzz(base: Path, gguf: Path, runs: int, number: int, folder: Path) -> dict[str, dict[str, float]]:
    """Run the coverage-guided fuzzer on every parser of bytes."""
    given = ["--base", base, "--gguf", gguf, "--work", folder, "--runs", runs, "--seed", number]
    shown = subprocess.run(
        [sys.executable, "-m", "tests.faults.guided", *map(str, given)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    counts = {}
    for row in (json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")):
        for fault, content in row["faults"].items():
            print(f"guided, {row['target']}: {fault}\n    {content[:300]}", flush=True)
        counts[f"guided, {row['target']}"] = {
            "cases": row["cases"],
            "refused": row["refused"],
            "faults": len(row["faults"]),
            "slowest s": round(row["slowest s"], 2),
            "most MB": round(row["most bytes"] / 1e6, 1),
        }
    return counts


@dataclass(frozen=True)
class Damage:
    name: str
    do: Callable[[bytearray, random.Random], object]


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at] = (data[at] + chance.randrange(1, 256)) % 256


def _zeros(data: bytearray, chance: random.Random) -> None:
    # a hole where there were zeros already would be no damage
    at = next(i for i in range(chance.randrange(len(data)), -1, -1) if data[i] or not i)
    data[at : at + 512] = bytes(len(data[at : at + 512]))


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _append(data: bytearray, chance: random.Random) -> None:
    data += chance.randbytes(chance.randrange(1, 64))


DAMAGES = [
    Damage("bit", _flip),
    Damage("byte", _byte),
    Damage("zeros", _zeros),
    Damage("cut", _cut),
    Damage("more", _append),
]


def damage(run: Path, times: int, number: int) -> tuple[int, int]:
    """Damage a file of a published directory, ask its manifest, put it back; how often, and how often unnoticed."""
    chance = random.Random(number)
    files = [path for path in run.rglob("*") if (path.parent / MANIFEST).is_file() and path.name != MANIFEST]
    done = accepted = 0
    while done < times:
        path = chance.choice(files)
        honest = path.read_bytes()
        data = bytearray(honest)
        chosen = chance.choice(DAMAGES)
        if chance.random() < 0.05:
            path.unlink()
        else:
            chosen.do(data, chance)
            if bytes(data) == honest:
                continue
            path.write_bytes(data)
        done += 1
        try:
            verify_directory(path.parent)
        except IntegrityError:
            pass
        else:
            accepted += 1
            print(f"accepted: {path.name}, {chosen.name}", flush=True)
        path.write_bytes(honest)
    return done, accepted


def main() -> int:
    """Feed, damage, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=250, help="for each parser")
    parser.add_argument("--damages", type=int, default=1000, help="of a finished run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", type=int, default=0, help="inputs of the guided fuzzer for each parser of bytes")
    parser.add_argument("--out", type=Path, help="write the counts here as JSON")
    given_arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[str, dict[str, float]] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aegis-hostile-") as folder:
        place = Path(folder)
        for name in ("laboratory", "honest", "fed"):
            (place / name).mkdir()
        laboratory = Laboratory(place / "laboratory", Once(place / "once"))
        run = place / "run"
        shutil.copytree(laboratory.start("verify") / "run", run)
        laboratory.close()
        (gguf,) = (run / "gguf").glob("*Q8_0.gguf")
        for target in targets(laboratory.base, gguf, place / "honest"):
            seen = feed(target, given_arguments.cases, given_arguments.seed, place / "fed")
            counts[target.name] = {
                "cases": len(seen),
                "refused": sum(not one.accepted for one in seen),
                "faults": sum(bool(one.fault) for one in seen),
                "slowest s": round(max(one.seconds for one in seen), 2),
                "most MB": round(max(one.more_bytes for one in seen) / 1e6, 1),
            }
            print(f"{target.name}: {counts[target.name]}", file=sys.stderr, flush=True)
        if given_arguments.guided:
            counts |= fuzz(laboratory.base, gguf, given_arguments.guided, given_arguments.seed, place / "guided")
        damaged, accepted = damage(run, given_arguments.damages, given_arguments.seed)
    width = max(map(len, counts))
    print(" " * width + "".join(f"{name:>{len(name) + 3}}" for name in next(iter(counts.values()))))
    for name, row in counts.items():
        print(f"{name:<{width}}" + "".join(f"{value:>{len(key) + 3}}" for key, value in row.items()))
    cases, faults = (int(sum(row[key] for row in counts.values())) for key in ("cases", "faults"))
    print(f"{cases} cases, {faults} faults; {damaged} damaged files, {accepted} accepted")
    print(f"{time.monotonic() - began:.0f} s")
    if given_arguments.out:
        everything = {"parsers": counts, "damaged": damaged, "accepted": accepted}
        given_arguments.out.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    return 1 if faults or accepted else 0


if __name__ == "__main__":
    sys.exit(main())
