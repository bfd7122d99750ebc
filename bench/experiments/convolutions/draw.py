"""Draws bench/results/convolutions_metrics.json and convolutions_speed.json.

    pip install matplotlib
    python bench/experiments/convolutions/draw.py

One picture has the accuracy of networks by the metric of their factors' errors, without training.
The other has the accuracy after training on, over how many times faster a network is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[3] / "bench/results"
STYLES = {  # metric: color, mark
    "squares": ("#8c8c8c", "o"),
    "covariance": ("#c22f2f", "D"),
    "Fisher": ("#8fb8e8", "s"),
    "Fisher, damped": ("#3b6fb6", "s"),
    "wrong classes": ("#9ccf95", "^"),
    "wrong classes, damped": ("#2e7d36", "^"),
}
TITLES = {"large": "5 × 5, 64–128–256 filters", "resnet20": "ResNet-20"}
Rows = list[dict[str, Any]]


def main() -> None:
    # The same picture from the same figures, in a file that says nothing of when it was drawn.
    matplotlib.rcParams.update({"svg.hashsalt": "fastfactor", "font.size": 11})
    for name, draw in (("metrics", draw_metrics), ("speed", draw_speed)):
        source = RESULTS / f"convolutions_{name}.json"
        if source.exists():
            save(draw(json.loads(source.read_text())["rows"]), source.with_suffix(".svg"))
        else:
            print(f"skipped: there is no {source}")


def draw_metrics(rows: Rows) -> Figure:
    figure, panels = panels_of(rows)
    for axes, (network, own) in panels:
        cases = [row for row in own if row["method"] is not None]
        for metric, (color, mark) in STYLES.items():
            points = [(k, row["accuracy"].get(metric)) for k, row in enumerate(cases)]
            points = [(k, value) for k, value in points if value is not None]
            style = {"color": color, "marker": mark, "linestyle": "", "label": metric}
            axes.plot(*zip(*points, strict=True), **style)
        dense = next(row["accuracy"]["dense"] for row in own if row["method"] is None)
        axes.axhline(dense, color="black", linewidth=1, linestyle=":", label="dense")
        names = [f"{row['method'].removeprefix('Conv')}\n÷ {row['ratio']:g}" for row in cases]
        axes.set_xticks(range(len(cases)), names, fontsize=9)
        axes.set_title(TITLES[network])
    return finished(figure, "accuracy without training", "method, and how much smaller")


def draw_speed(rows: Rows) -> Figure:
    figure, panels = panels_of(rows)
    for axes, (network, own) in panels:
        for images, color in ((1, "#e08a3c"), (16, "#3b6fb6")):
            points = sorted((faster(row, images), row["accuracy"]) for row in own)
            style = {"color": color, "marker": "o", "label": f"{images} at a time"}
            axes.plot(*zip(*points, strict=True), **style)
        dense = own[0]["accuracy_dense"]
        axes.axhline(dense, color="black", linewidth=1, linestyle=":", label="dense")
        axes.axhline(dense - 0.01, color="black", linewidth=0.5, linestyle="--", label="1 % less")
        axes.set_title(TITLES[network])
    return finished(figure, "accuracy after training on", "times faster, one thread")


def faster(row: dict[str, Any], images: int) -> float:
    found = next(m for m in row["milliseconds"] if (m["threads"], m["images"]) == (1, images))
    return found["dense"] / found["factored"]


def panels_of(rows: Rows) -> tuple[Figure, list[tuple[Axes, tuple[str, Rows]]]]:
    """A figure with a panel for each network, and the network's rows."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(6.5 * len(networks), 4.5), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    own = [(name, [row for row in rows if row["network"] == name]) for name in networks]
    return figure, list(zip(panels, own, strict=True))


def finished(figure: Figure, quality: str, below: str) -> Figure:
    for axes in figure.axes:
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_xlabel(below)
    figure.axes[0].set_ylabel(quality)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    text = "\n".join(line.rstrip() for line in path.read_text().splitlines())
    path.write_text(text + "\n")
    print(path)


if __name__ == "__main__":
    main()
