"""Draws bench/results/size_error_curves.json: error over bits a weight, a line for each method.

    pip install matplotlib
    python bench/experiments/draw_size_error_curves.py

A line is the best of a method's variants: the least error that any of them has at no more bytes.
Codebooks of scalars, of vectors and sums of them have a line each. Dotted is what no code can beat
on independent normal numbers of one variance; a matrix that is not like that may lie below.
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
STYLES = {  # name: color, dashes, mark
    "truncated SVD": ("black", (0, (5, 2)), ""),
    "LowRank": ("#8a8a8a", "-", "o"),
    "Dictionary": ("#d1793b", "-", "o"),
    "Codebook, scalars": ("#9cc3ea", "-", "s"),
    "Codebook, vectors": ("#3b6fb6", "-", "s"),
    "Codebook, sums": ("#16396b", "-", "s"),
    "EntropyCoded": ("#c22f2f", "-", "D"),
    "Prune": ("#a5d2a0", "-", "^"),
    "PruneCodebook": ("#38853f", "-", "^"),
    "Simhash": ("#b58fc9", "-", "v"),
    "BlockProjection": ("#7a4c96", "-", "v"),
    "BlockDiagonal": ("#c4b08b", "-", "x"),
    "MixedBlock": ("#7a6034", "-", "x"),
}
OTHERS = ("#e0559f", "-", "*")
SAME_SIZE = 1.04
FEWEST_BITS, MOST_BITS, LEAST_ERROR = 0.25, 16, 0.003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "size_error_curves.json")
    parser.add_argument("--to", type=Path, default=RESULTS / "size_error_curves.svg")
    args = parser.parse_args()
    curves = json.loads(args.json.read_text())["curves"]
    matrices = list(dict.fromkeys(line["matrix"] for line in curves))
    # The same picture from the same figures, in a file that says nothing of when it was drawn.
    matplotlib.rcParams.update({"svg.hashsalt": "fastfactor", "font.size": 9})
    figure = Figure(figsize=(4.4 * len(matrices) + 1.6, 4.6), layout="constrained")
    panels = figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0]
    for panel, matrix in zip(panels, matrices, strict=True):
        draw(panel, matrix, [line for line in curves if line["matrix"] == matrix])
    panels[0].set_ylabel("‖W − Ŵ‖² / ‖W‖²")
    handles = {
        text: handle
        for panel in panels
        for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=9
    )
    figure.savefig(args.to, metadata={"Date": None} if args.to.suffix == ".svg" else None)


def draw(panel: Axes, matrix: str, lines: list[dict[str, Any]]) -> None:
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in STYLES}
    for line in lines:
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
            markersize=3.5,
            linewidth=1.4,
            zorder=3 if name == "truncated SVD" else 2,
        )
    bits = np.geomspace(FEWEST_BITS, MOST_BITS, 50)
    panel.plot(bits, 4.0**-bits, ":", color="black", linewidth=1, label="normal numbers: 4⁻ᵇⁱᵗˢ")
    panel.set(
        title=matrix,
        xlabel="bits a weight",
        xscale="log",
        yscale="log",
        xlim=(FEWEST_BITS, MOST_BITS),
        ylim=(LEAST_ERROR, 1.1),
    )
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    panel.set_xticks(ticks, [f"{bits:g}" for bits in ticks])
    panel.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3, 1], ["0.003", "0.01", "0.03", "0.1", "0.3", "1"])
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
