"""Draw the figures of a run: sizes, errors against sizes, singular values, weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.report import Report, TensorRow
from .data import Curve, Matrix, curve_of, matrix_of
from .panels import COLORS, GREY, MARKERS, panels_of, require_matplotlib, save, short

MAX_BARS = 60
MAX_MATRICES = 12
MAX_CURVES = 6
N_BINS = 200
UNITS = ((10**9, "GB (10⁹ bytes)"), (10**6, "MB (10⁶ bytes)"), (10**3, "kB (10³ bytes)"))
ERROR = "error ‖W − Ŵ‖² / ‖W‖²"
BITS = "bits per weight, including tables and indices"


def save_figures(
    report: Report,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[str, int, int], None] | None = None,
    n_threads: int | None = None,
) -> list[Path]:
    """Draw what a run of :func:`fastfactor.compress_file` did.

    Parameters
    ----------
    report : Report
        The report of a run whose source and target still exist.
    folder : path
        Created if it does not exist; files of earlier runs are replaced.
    progress : callable, optional
        As for `compress_file`, but counts matrices.
    n_threads : int, optional
        As for `compress_file`.

    Returns
    -------
    list of Path
        ``sizes.png``: bytes of each tensor before and after. ``errors.png``: error against bits per
        weight of each compressed matrix. For the largest matrices also ``curves.png``: the error of
        the matrix's method at other sizes, and of truncated singular value decompositions;
        ``singular_values.png``: their spectra; and ``values.png``: histograms of the weights before
        and after. Titles say which parts were sampled.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    OSError
        If files cannot be read or written.

    Notes
    -----
    If both sides of a matrix are longer than 1,024, its singular values are computed from at most
    1,024 evenly spaced rows and columns. For curves each matrix, or a part of 128 × 512, is
    compressed at most five times by its method, which takes some seconds for the slow ones.
    """
    require_matplotlib()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    largest = sorted(report.compressed, key=lambda row: -row.bytes_before)[:MAX_MATRICES]
    n_curves = min(len(largest), MAX_CURVES)
    matrices, curves = [], []
    for number, row in enumerate(largest):
        if progress is not None:
            progress(row.name, number, len(largest))
        matrices.append(matrix_of(report, row, n_threads))
        if number < n_curves:
            curves.append(curve_of(report, row, n_threads))
    if progress is not None:
        progress("", len(largest), len(largest))
    drawings = {"sizes": _sizes(report)}
    if matrices:
        drawings["errors"] = _errors(report)
        drawings["curves"] = _curves(report, curves)
        drawings["singular_values"] = _singular_values(report, matrices)
        drawings["values"] = _values(report, matrices)
    paths = []
    for name, figure in drawings.items():
        paths.append(place / f"{name}.png")
        save(figure, paths[-1])
    return paths


def _sizes(report: Report) -> Any:
    rows = sorted(report.rows, key=lambda row: -row.bytes_before)[:MAX_BARS]
    rows = [row for row in report.rows if row in rows]  # in the model's order
    figure, (axes,) = panels_of(1, height=1.6 + 0.22 * len(rows))
    at = np.arange(len(rows))
    most = max((row.bytes_before for row in rows), default=0)
    unit, name = next(((u, n) for u, n in UNITS if most >= u), UNITS[-1])
    before, after = ([(n or 0) / unit for n in sizes] for sizes in _both_sizes(rows))
    axes.barh(at, before, 0.8, color="#d4d8de", label="before")
    axes.barh(at, after, 0.45, color=COLORS[0], label="after")
    axes.set_yticks(at, [short(row.name) for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(name)
    some = f"the {len(rows)} largest of " if len(rows) < len(report.rows) else ""
    axes.set_title(
        f"{some}{_count(len(report.rows), 'tensor')}; files: {report.file_bytes_before:,} → "
        f"{report.file_bytes_after or 0:,} bytes",
        fontsize=9,
    )
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _both_sizes(rows: Sequence[TensorRow]) -> tuple[list[int], list[int | None]]:
    return [row.bytes_before for row in rows], [row.bytes_after for row in rows]


def _errors(report: Report) -> Any:
    figure, (axes,) = panels_of(1, height=5.2)
    rows = [row for row in report.compressed if row.relative_error]
    for method, color, marker in _styles(report):
        points = [(r.bits_per_weight, r.relative_error) for r in rows if r.method == method]
        if points:
            bits_and_errors = zip(*points, strict=True)
            style = {"color": color, "marker": marker, "alpha": 0.75, "linewidth": 0}
            axes.scatter(*bits_and_errors, s=26, label=method, **style)
    bits = [row.bits_per_weight or 0 for row in rows]
    grid = np.geomspace(min([0.5, *bits]), max([8.0, *bits]), 80)
    label = r"Gaussian limit, $4^{-\mathrm{bits}}$"
    axes.plot(grid, 4.0**-grid, ":", color=GREY, linewidth=1, label=label)
    least = min((row.relative_error or 1 for row in rows), default=1e-4)
    axes.set_ylim(max(1e-9, least / 4), 1.5)
    _bits_and_errors(axes)
    axes.set_xlabel(BITS)
    axes.set_ylabel(ERROR)
    others = sorted({row.metric for row in rows if row.metric not in (None, "squares")})
    under = f", some under {' or '.join(map(str, others))}" if others else ""
    matrices = _count(len(rows), "compressed matrix", "compressed matrices")
    axes.set_title(f"{matrices}{under}", fontsize=9)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    return figure


def _curves(report: Report, curves: Sequence[Curve]) -> Any:
    figure, panels = panels_of(len(curves), most=3, margin=0.55)
    styles = {method: (color, marker) for method, color, marker in _styles(report)}
    for axes, curve in zip(panels, curves, strict=True):
        color, marker = styles[curve.row.method]
        svd, own = (points[points[:, 1] > 0] for points in (curve.svd, curve.method))
        axes.plot(*svd.T, "--", color=GREY, linewidth=1.2, label="truncated SVD")
        axes.plot(*own.T, color=color, marker=marker, ms=4, lw=1.2, label="its method")
        if curve.chosen is not None and curve.chosen[1] > 0:
            axes.plot(*curve.chosen, "o", ms=10, mfc="none", mec="black", label="as chosen")
        _bits_and_errors(axes)
        under = "" if curve.row.metric in (None, "squares") else f", under {curve.row.metric}"
        text = f"{short(curve.row.name)}: {curve.row.method}\n{curve.cut}{under}"
        axes.set_title(text, fontsize=7)
        axes.set_xlabel(BITS, fontsize=7)
        axes.tick_params(labelsize=7, which="both")
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=7)
    figure.supylabel(ERROR, fontsize=8)
    _heading(figure, report, len(curves), "Error at other sizes")
    return figure


def _bits_and_errors(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e8eaed", linewidth=0.6)
    axes.set_axisbelow(True)


def _styles(report: Report) -> list[tuple[str, str, str]]:
    """Return each method of a report with its color and marker."""
    methods = sorted({row.method for row in report.compressed})
    return [
        (method, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
        for i, method in enumerate(methods)
    ]


def _singular_values(report: Report, matrices: Sequence[Matrix]) -> Any:
    figure, panels = panels_of(len(matrices))
    for axes, matrix in zip(panels, matrices, strict=True):
        values = matrix.spectrum / max(float(matrix.spectrum.max()), 1e-300)
        axes.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-8), color=COLORS[0])
        axes.set_yscale("log")
        axes.set_title(f"{short(matrix.row.name)}\n{matrix.spectrum_of}", fontsize=7)
        axes.tick_params(labelsize=7, which="both")
    figure.supxlabel("index", fontsize=8)
    _heading(figure, report, len(matrices), "Singular values divided by the largest")
    return figure


def _values(report: Report, matrices: Sequence[Matrix]) -> Any:
    figure, panels = panels_of(len(matrices))
    for axes, matrix in zip(panels, matrices, strict=True):
        low, high = np.quantile(matrix.before, [0.0005, 0.9995])
        edges = np.linspace(low, high if high > low else low + 1, N_BINS + 1)
        axes.hist(matrix.after, edges, color=COLORS[1], label="after")
        axes.hist(matrix.before, edges, histtype="step", color="#303030", lw=0.7, label="before")
        axes.set_yscale("log")
        title = f"{short(matrix.row.name)}: {matrix.row.method}\n{matrix.values_of}"
        axes.set_title(title, fontsize=7)
        axes.tick_params(labelsize=7, which="both")
    panels[0].legend(loc="upper right", frameon=False, fontsize=7)
    figure.supxlabel("weight", fontsize=8)
    figure.supylabel("count", fontsize=8)
    _heading(figure, report, len(matrices), "The middle 99.9 % of the weights, before and after")
    return figure


def _heading(figure: Any, report: Report, shown: int, text: str) -> None:
    n = len(report.compressed)
    some = f"the {shown} largest of {n} compressed matrices"
    if shown == n:
        some = f"all {n} compressed matrices" if n > 1 else "the one compressed matrix"
    figure.suptitle(f"{text}; {some}", fontsize=9)


def _count(n: int, one: str, more: str = "") -> str:
    return f"1 {one}" if n == 1 else f"{n} {more or one + 's'}"
