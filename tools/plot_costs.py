"""Draw what the benchmarks measured: merge's time against the base's size, data against rows, a step against tokens.

    PYTHONPATH=pipeline:. python tools/plot_costs.py --out costs.png RESULT.json …

The results are those of bench_merge.py (one of each size, --layers), bench_data.py and bench_train.py; a kind of which
there is none has no panel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

PEERS = {"unsloth": "Unsloth", "hf": "transformers + peft"}
Curves = dict[str, list[tuple[float, float]]]
PANELS = {
    "merge": ("merge", "GB of the base", "seconds"),
    "data": ("data preparation", "chat rows", "seconds"),
    "train": ("training step", "tokens", "ms"),
}


def curves(documents: list[dict[str, Any]]) -> dict[str, Curves]:
    """Points (x, y) by panel and contender, in the order of x.

    Raises:
        ValueError: a document is none of the benchmarks'.
    """
    found: dict[str, Curves] = {panel: defaultdict(list) for panel in PANELS}
    for document in documents:
        if "base_bytes" in document:
            for row in document["table"]:
                found["merge"][row["name"]].append((document["base_bytes"] / 1e9, row["seconds"]))
        elif "peers" in document:
            for row in document["rows"]:
                # "max_length=512 compile=off" is a point of the curve "aegis, compile=off"
                length, _, name = row["name"].removeprefix("max_length=").partition(" ")
                if row.get("ms"):
                    name = f"aegis, {name}".replace("activation_checkpointing=offload", "offload")
                    name = name.replace("activation_checkpointing=off", "kept").replace("rotation=", "")
                    found["train"][name].append((int(length), row["ms"]))
            for row in document["peers"]:
                if row.get("ms"):
                    name = f"{PEERS.get(row['peer'], row['peer'])}, {'recomputed' if row['recomputes'] else 'kept'}"
                    found["train"][name].append((row["length"], row["ms"]))
        elif "windows" in document["table"][0]:
            for row in document["table"]:
                found["data"]["the first time"].append((row["rows"], row["seconds"]))
                found["data"]["from the cache"].append((row["rows"], row["seconds_again"]))
        else:
            raise ValueError("these results are none of the benchmarks'")
    return {panel: {name: sorted(points) for name, points in lines.items()} for panel, lines in found.items() if lines}


def draw(found: dict[str, Curves], path: Path) -> None:
    """One panel beside the other, both axes logarithmic; a step's time, which hardly grows at first, from zero on.

    A contender has one colour; its curve is dashed where activations are not kept. The legend covers no curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(4.6 * len(found), 4.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (panel, lines) in zip(axes, found.items(), strict=True):
        title, x, y = PANELS[panel]
        colours: dict[str, str] = {}
        for name, points in lines.items():
            who, _, how = name.partition(", ") if panel == "train" else (name, "", "")
            colour = colours.setdefault(who, f"C{len(colours)}")
            style = "--" if how in ("offload", "recomputed") else ":" if how.endswith("dense") else "-"
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, linestyle=style, label=name)
        axis.set(title=title, xlabel=x, ylabel=y, xscale="log")
        measured = sorted({x for points in lines.values() for x, _ in points})
        axis.set_xticks(measured, [f"{x:,.3g}" if x < 100 else f"{x:,.0f}" for x in measured])
        axis.xaxis.set_minor_formatter(NullFormatter())
        if panel == "train":
            axis.set_ylim(bottom=0)
        else:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, handlelength=4)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Read the results, draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files that the benchmarks wrote")
    parser.add_argument("--out", type=Path, default=Path("costs.png"))
    arguments = parser.parse_args()
    draw(curves([json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]), arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
