"""Draws bench/results/while_training.json: quality over bytes, and when to compress.

    pip install matplotlib
    python bench/experiments/while_training/draw.py

One picture has a line for each method, over the bytes of the compressed weights: full where they
were compressed during the training, dotted where they were compressed after it and not trained any
further. Of several seeds it shows the mean. The other has a mark for each seed and a bar for the
mean, of models that were compressed at other times.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "bench/results"
PANELS = {
    "cifar10": ("CIFAR-10, a small convolutional network", "accuracy: higher is better"),
    "language": ("Novels, a language model of words", "perplexity: lower is better"),
}
STYLES = {  # name: color, mark
    "entropy coded": ("#c22f2f", "D"),
    "k-means of vectors": ("#3b6fb6", "s"),
    "k-means": ("#8fb8e8", "s"),
    "deep compression": ("#174f1d", "^"),
    "k-means + pruning": ("#2e7d36", "^"),
    "pruning": ("#9ccf95", "^"),
    "dictionary": ("#e08a3c", "o"),
    "low rank": ("#6b4a99", "o"),
    "simhash": ("#8c8c8c", "v"),
}
WHEN = {
    "during": "during, blended",
    "at once": "at the same step, without a blend",
    "after, further": "after, then trained for as many steps",
    "after": "after, not trained any further",
}
WORST_PERPLEXITY = 4  # times that of the dense model; worse ones are beyond the edge
Runs = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "while_training.json")
    parser.add_argument("--to", type=Path, default=RESULTS, help="a folder")
    args = parser.parse_args()
    runs = json.loads(args.json.read_text())["runs"]
    # The same picture from the same figures, in a file that says nothing of when it was drawn.
    matplotlib.rcParams.update({"svg.hashsalt": "fastfactor", "font.size": 11})
    for name, draw in (("curves", draw_curves), ("when", draw_when)):
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        for panel, (task, (title, label)) in zip(axes, PANELS.items(), strict=True):
            draw(panel, [run for run in runs if run["task"] == task])
            panel.set_title(title, fontsize=12)
            panel.set_ylabel(label)
            panel.grid(color="#e6e6e6", linewidth=0.7)
        handles = {
            text: handle
            for panel in axes
            for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", frameon=False, ncols=4
        )
        figure.savefig(args.to / f"while_training_{name}.svg", metadata={"Date": None})


def draw_curves(panel: Axes, runs: Runs) -> None:
    for name, (color, mark) in STYLES.items():
        for variant, dashes in (("during", "-"), ("after", ":")):
            points = means([r for r in runs if (r["method"], r["variant"]) == (name, variant)])
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    label=name if variant == "during" else None,
                    color=color,
                    linestyle=dashes,
                    marker=mark,
                    markersize=5 if variant == "during" else 3,
                    linewidth=1.6 if variant == "during" else 1,
                )
    draw_dense(panel, runs)
    panel.set(xlabel="KB of the compressed weights in the file", xscale="log")
    shown = sorted({round(r["bytes"] / 1000) for r in runs if r["method"] == "simhash"})
    panel.set_xticks(shown, [f"{kb:,}" for kb in shown])
    panel.minorticks_off()


def draw_when(panel: Axes, runs: Runs) -> None:
    at_once = {(r["method"], r["ratio"]) for r in runs if r["variant"] == "at once"}
    compared = [r for r in runs if (r["method"], r["ratio"]) in at_once]
    methods = [name for name in STYLES if any(r["method"] == name for r in compared)]
    colors = ("#c22f2f", "#e08a3c", "#3b6fb6", "#8c8c8c")
    for place, (variant, text) in enumerate(WHEN.items()):
        for at, method in enumerate(methods):
            found = [
                r["test"] for r in compared if (r["method"], r["variant"]) == (method, variant)
            ]
            x = at + 0.2 * (place - 1.5)
            style = {"color": colors[place]}
            label = text if at == 0 else None
            panel.plot([x] * len(found), found, "o", markersize=4, label=label, **style)
            if found:
                panel.plot([x - 0.07, x + 0.07], [np.mean(found)] * 2, linewidth=2, **style)
    draw_dense(panel, runs)
    panel.set_xticks(range(len(methods)), methods)


def draw_dense(panel: Axes, runs: Runs) -> None:
    dense = [run for run in runs if run["method"] is None]
    if not dense:
        return
    mean = np.mean([run["test"] for run in dense])
    panel.axhline(mean, color="black", linewidth=1, linestyle="--", label="dense model")
    if dense[0]["measure"] == "perplexity":
        panel.set_yscale("log")
        panel.set_ylim(top=WORST_PERPLEXITY * mean)
        ticks = [round(mean * factor, -1) for factor in (1, 1.5, 2, 3)]
        panel.set_yticks(ticks, [f"{tick:.0f}" for tick in ticks])
        panel.minorticks_off()


def means(runs: Runs) -> list[tuple[float, float]]:
    """Mean KB and mean quality over the seeds, by size."""
    by_ratio = defaultdict(list)
    for run in runs:
        by_ratio[run["ratio"]].append((run["bytes"] / 1000, run["test"]))
    return sorted(tuple(np.mean(points, axis=0)) for points in by_ratio.values())


if __name__ == "__main__":
    main()
