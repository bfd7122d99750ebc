"""Draws bench/results/size_error_curves.json: error over bits a weight, a line for each method.

    pip install matplotlib
    python bench/experiments/draw_size_error_curves.py

A line is the best of a method's variants: the least error that any of them has at no more bytes.
Codebooks of scalars, of vectors and sums of them have a line each. Dotted is what no code can beat
on independent normal numbers of one variance; a matrix that is not like that may lie below.
Forms that were published as layers to train in are grey.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results"
TITLES = {
    "lenet fc1": "LeNet-300-100's first layer, 300 × 784",
    "wordllama, 4,096 rows": "wordllama's embeddings, 4,096 × 256",
}
STYLES = {  # name: color, dashes, mark
    "EntropyCoded": ("#c22f2f", "-", "D"),
    "Codebook, sums": ("#16396b", "-", "s"),
    "Codebook, vectors": ("#3b6fb6", "-", "s"),
    "Codebook, scalars": ("#8fb8e8", "-", "s"),
    "PruneCodebook": ("#2e7d36", "-", "^"),
    "Prune": ("#9ccf95", "-", "^"),
    "Dictionary": ("#e08a3c", "-", "o"),
    "LowRank": ("#6b4a99", "-", "o"),
    "Simhash": ("#8c8c8c", "-", "v"),
    "BlockProjection": ("#8c8c8c", "--", "x"),
    "MixedBlock": ("#b0b0b0", "-", "x"),
    "BlockDiagonal": ("#b0b0b0", "--", "v"),
}
BASELINE = "truncated SVD"
OTHERS = ("#e0559f", "-", "*")
SAME_SIZE = 1.04
FEWEST_BITS, MOST_BITS, LEAST_ERROR = 0.25, 16, 0.0003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "size_error_curves.json")
    parser.add_argument("--to", type=Path, default=RESULTS / "size_error_curves.svg")
    args = parser.parse_args()
    curves = json.loads(args.json.read_text())["curves"]
    # The same picture from the same figures, in a file that says nothing of when it was drawn.
    matplotlib.rcParams.update({"svg.hashsalt": "fastfactor", "font.size": 11})
    figure = Figure(figsize=(5 * len(TITLES), 6.2), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True, squeeze=False)[0]
    for panel, (matrix, title) in zip(panels, TITLES.items(), strict=True):
        draw(panel, [line for line in curves if line["matrix"] == matrix])
        panel.set_title(title, fontsize=12)
    panels[0].set_ylabel("error ‖W − Ŵ‖² / ‖W‖²: lower is better")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", frameon=False, ncols=4)
    figure.savefig(args.to, metadata={"Date": None} if args.to.suffix == ".svg" else None)


def draw(panel: Axes, lines: list[dict[str, Any]]) -> None:
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in STYLES}
    for line in lines:
        if family(line["method"]) == BASELINE:  # LowRank has the same errors
            continue
        of_method = points.setdefault(family(line["method"]), [])
        for nbytes, error in zip(line["bytes"], line["error"], strict=True):
            if nbytes:
                of_method.append((8 * nbytes / line["n_weights"], error))
    for name, found in points.items():
        if not found:
            continue
        color, dashes, mark = STYLES.get(name, OTHERS)
        bits, errors = envelope(found)
        panel.plot(
            bits,
            errors,
            label=name,
            color=color,
            linestyle=dashes,
            marker=mark,
            markersize=4,
            linewidth=1.6,
        )
    bits = np.geomspace(FEWEST_BITS, MOST_BITS, 50)
    panel.plot(bits, 4.0**-bits, ":", color="black", linewidth=1, label="bound for normal numbers")
    panel.set(
        xlabel="bits a weight (float32: 32)",
        xscale="log",
        yscale="log",
        xlim=(FEWEST_BITS, MOST_BITS),
        ylim=(LEAST_ERROR, 1.1),
    )
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    panel.set_xticks(ticks, [f"{bits:g}" for bits in ticks])
    ticks = [0.001, 0.01, 0.1, 1]
    panel.set_yticks(ticks, [f"{error:g}" for error in ticks])
    panel.minorticks_off()
    panel.grid(color="#e6e6e6", linewidth=0.7)


def family(method: str) -> str:
    """The line that a method with its settings belongs to."""
    name = method.partition(",")[0]
    if name != "Codebook":
        return name
    if "n_codebooks=" in method:
        return "Codebook, sums"
    return "Codebook, vectors" if "vector_dim=" in method else "Codebook, scalars"


def envelope(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points that have less error than every smaller one; of about the same size, the best."""
    best: list[tuple[float, float]] = []
    for bits, error in sorted(points):
        if best and error >= best[-1][1]:
            continue
        if best and bits < SAME_SIZE * best[-1][0]:
            best.pop()
        best.append((bits, error))
    return [bits for bits, _ in best], [error for _, error in best]


if __name__ == "__main__":
    main()
