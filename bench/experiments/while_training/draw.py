"""Draws bench/results/while_training.json: quality over bytes, and when to compress.

    pip install matplotlib
    python bench/experiments/while_training/draw.py

One picture has a line for each method, over the bytes of the compressed weights, and a column for
each time of compressing: during the training, late in it, or after it. Of several seeds it shows
the mean. The other has a mark for each seed and a bar for the mean, of models of one size that were
compressed at these times and others.
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
    "cifar10": ("CIFAR-10", "accuracy: higher is better"),
    "language": ("language model", "perplexity: lower is better"),
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
    "during": ("from a third to half of the steps", "#c22f2f"),
    "at once": ("at a third of the steps, without a blend", "#e08a3c"),
    "late": ("from 0.8 to 0.9 of the steps", "#2e7d36"),
    "after": ("after all steps", "#8c8c8c"),
    "after, further": ("after all steps, then two thirds more", "#3b6fb6"),
}
COLUMNS = ("during", "late", "after")
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
    save(draw_curves(runs), args.to / "while_training_curves.svg")
    save(draw_when(runs), args.to / "while_training_when.svg")


def draw_curves(runs: Runs) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    rows = figure.subplots(len(PANELS), len(COLUMNS), sharey="row")
    for panels, (task, (title, label)) in zip(rows, PANELS.items(), strict=True):
        of_task = [run for run in runs if run["task"] == task]
        for panel, when in zip(panels, COLUMNS, strict=True):
            draw_methods(panel, [run for run in of_task if run["variant"] == when])
            draw_dense(panel, of_task)
            panel.set_title(f"{title}, compressed\n{WHEN[when][0]}", fontsize=11)
            panel.grid(color="#e6e6e6", linewidth=0.7)
        panels[0].set_ylabel(label)
    return figure


def draw_methods(panel: Axes, runs: Runs) -> None:
    for name, (color, mark) in STYLES.items():
        points = means([run for run in runs if run["method"] == name])
        style = {"color": color, "marker": mark, "markersize": 5, "linewidth": 1.6}
        panel.plot(*zip(*points, strict=True) if points else ([], []), label=name, **style)
    panel.set(xlabel="KB of the compressed weights in the file", xscale="log")
    shown = sorted({round(run["bytes"] / 1000) for run in runs if run["method"] == "simhash"})
    panel.set_xticks(shown, [f"{kb:,}" for kb in shown])
    panel.minorticks_off()


def draw_when(runs: Runs) -> Figure:
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for panel, (task, (title, label)) in zip(panels, PANELS.items(), strict=True):
        of_task = [run for run in runs if run["task"] == task]
        draw_times(panel, of_task)
        draw_dense(panel, of_task)
        panel.set(title=title, ylabel=label)
        panel.grid(color="#e6e6e6", linewidth=0.7, axis="y")
    return figure


def draw_times(panel: Axes, runs: Runs) -> None:
    at_once = {(run["method"], run["ratio"]) for run in runs if run["variant"] == "at once"}
    compared = [run for run in runs if (run["method"], run["ratio"]) in at_once]
    methods = [name for name in STYLES if any(run["method"] == name for run in compared)]
    for place, (when, (text, color)) in enumerate(WHEN.items()):
        for at, method in enumerate(methods):
            found = [r["test"] for r in compared if (r["method"], r["variant"]) == (method, when)]
            x = at + 0.16 * (place - 2)
            label = text if at == 0 else None
            panel.plot([x] * len(found), found, "o", markersize=4, label=label, color=color)
            if found:
                panel.plot([x - 0.06, x + 0.06], [np.mean(found)] * 2, linewidth=2, color=color)
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure with one legend for all panels, each line in it once."""
    handles = {
        text: handle
        for panel in figure.axes
        for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", frameon=False, ncols=5
    )
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
