"""Time the preparation of chat rows: read, check, render, tokenize, pack; and the same rows again, from the cache.

    PYTHONPATH=pipeline:. python tools/bench_data.py --tokenizer FOLDER [--rows 1000,10000,100000] [--out results.json]

FOLDER holds the tokenizer files of a base with a chat template. A row is three conversations of the embedded
corpus, made another one by a number. Every preparation runs in a process of its own; its seconds and
peak memory have Python's start and the libraries' in them, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark import measured_on, quiet_and_offline

from aegis.demo.corpus import conversations

_DIFFERENT = 5000
CHILD = """
import json, resource, sys
from pathlib import Path
from aegis.data.dataset import prepare
from aegis.model.base import load_tokenizer
data, tokenizer, cache = sys.argv[1:]
report = prepare(data, load_tokenizer(Path(tokenizer)), heldout_rows=100, cache_dir=Path(cache)).report
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"rows": report.rows, "tokens": report.tokens, "windows": report.windows, "peak_bytes": peak}))
"""


def write_rows(path: Path, count: int) -> None:
    """So many different chats, one a line: three of the corpus's each, under the first one's system message."""
    chats = conversations(0, 3 * min(count, _DIFFERENT))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            first = 3 * number % len(chats)
            one, *others = chats[first : first + 3]
            spoken = [message for chat in others for message in chat if message["role"] != "system"]
            messages = [dict(message) for message in (*one, *spoken)]
            messages[-1]["content"] += f"（{number}）"
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def measure(data: Path, tokenizer: Path, cache: Path) -> dict[str, float]:
    """Prepare once, in a new process."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(data), str(tokenizer), str(cache)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return {"seconds": time.monotonic() - began, **json.loads(ended.stdout)}


def main() -> int:
    """Run all, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a base's folder; no weights are needed")
    parser.add_argument("--rows", default="1000,10000,100000", help="how many, each a line of the table")
    parser.add_argument("--out", type=Path, default=Path("bench_data.json"), help="JSON file for the results")
    arguments = parser.parse_args()
    quiet_and_offline()
    table = []
    print(f"{'rows':>9}{'MB':>8}{'tokens':>12}{'seconds':>9}{'again':>7}{'peak GB':>9}   load before")
    for count in (int(text) for text in arguments.rows.split(",")):
        with tempfile.TemporaryDirectory(prefix="bench-data-") as work:
            data = Path(work) / "rows.jsonl"
            write_rows(data, count)
            load = os.getloadavg()[0]
            first = measure(data, arguments.tokenizer, Path(work) / "cache")
            again = measure(data, arguments.tokenizer, Path(work) / "cache")
            size = data.stat().st_size
        row = {**first, "bytes": size, "seconds_again": again["seconds"], "load_before": load}
        table.append(row)
        print(
            f"{first['rows']:>9,}{size / 1e6:>8.1f}{first['tokens']:>12,}{first['seconds']:>9.1f}"
            f"{again['seconds']:>7.1f}{first['peak_bytes'] / 1e9:>9.2f}   {load:.1f}",
            flush=True,
        )
    document = {
        **measured_on(),
        "table": table,
    }
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
