"""Figures of a run: sizes, errors against sizes, singular values, and the values that are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._checks import Array
from .checkpoint import open_checkpoint
from .methods.base import Factors
from .report import Report, TensorRow
from .store import open_store

MAX_BARS = 60
MAX_MATRICES = 12
MAX_SIDE = 1024  # the shorter one of a matrix whose singular values are computed without sampling
ROWS_AT_ONCE = 4096
MAX_VALUES = 1 << 20  # of a histogram
N_BINS = 200
UNITS = ((10**9, "GB (10⁹ bytes)"), (10**6, "MB (10⁶ bytes)"), (10**3, "kB (10³ bytes)"))
COLORS = ("#3b6fb6", "#d1793b", "#4d9a5b", "#a8518a", "#7a6a52", "#4a9fa6", "#b5483f", "#8d8d3a")


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
        Of a run whose source and target are still there.
    folder : path
        Made if it is not there; files of earlier runs are replaced.
    progress : callable, optional
        As for `compress_file`, in matrices.
    n_threads : int, optional
        As for `compress_file`.

    Returns
    -------
    list of Path
        ``sizes.png``: bytes of each tensor before and after. ``errors.png``: error against bits a
        weight of each compressed matrix, and of truncated singular values. ``singular_values.png``
        and ``values.png``: of the largest matrices, spectra, and histograms of the weights before
        and after, where a codebook's values stand out. What is sampled says so in its title.

    Raises
    ------
    ImportError
        Where matplotlib is missing.
    OSError
        Where files cannot be read or written.

    Notes
    -----
    Where both sides of a matrix are longer than 1,024, singular values are those of at most so many
    rows and columns, evenly spaced; they have no curve among the errors, as a part is easier.
    """
    need_matplotlib()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    largest = sorted(report.compressed, key=lambda row: -row.bytes_before)[:MAX_MATRICES]
    matrices = []
    for number, row in enumerate(largest):
        if progress is not None:
            progress(row.name, number, len(largest))
        matrices.append(_looked_at(report, row, n_threads))
    if progress is not None:
        progress("", len(largest), len(largest))
    drawings = {"sizes": _sizes(report)}
    if matrices:
        drawings["errors"] = _errors(report, matrices)
        drawings["singular_values"] = _singular_values(report, matrices)
        drawings["values"] = _values(report, matrices)
    paths = []
    for name, figure in drawings.items():
        paths.append(place / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def need_matplotlib() -> None:
    """That figures can be drawn.

    Raises
    ------
    ImportError
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib, which is not installed: pip install 'fastfactor[figures]'"
        ) from error


@dataclass(frozen=True)
class _Matrix:
    """What figures show of one compressed matrix."""

    row: TensorRow
    spectrum: Array
    spectrum_of: str
    is_whole: bool
    before: Array
    after: Array
    values_of: str


def _looked_at(report: Report, row: TensorRow, n_threads: int | None) -> _Matrix:
    W = open_checkpoint(report.source)[row.name].reshape(row.shape[0], -1)
    part, sampled = W, ""
    if min(W.shape) > MAX_SIDE:
        rows, columns = (_even(n, MAX_SIDE) for n in W.shape)
        part = W[rows][:, columns]
        sampled = f"{len(rows):,} × {len(columns):,} of "
    ids = _even(W.shape[0], max(MAX_VALUES // max(W.shape[1], 1), 1))
    with open_store(report.target) as store:
        factors = store[row.name]
        assert isinstance(factors, Factors)
        rebuilt = factors.rows(ids, n_threads=n_threads)
    return _Matrix(
        row=row,
        spectrum=_spectrum(part),
        spectrum_of=f"{sampled}{W.shape[0]:,} × {W.shape[1]:,}",
        is_whole=not sampled,
        before=W[ids].astype(np.float32).ravel(),
        after=rebuilt.astype(np.float32).ravel(),
        values_of=f"{len(ids):,} of {W.shape[0]:,} rows" if len(ids) < W.shape[0] else "all rows",
    )


def _spectrum(W: Array) -> Array:
    """Singular values, falling, by the Gram matrix of the shorter side: exact enough to be seen."""
    tall = W if W.shape[0] >= W.shape[1] else W.T
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for first in range(0, len(tall), ROWS_AT_ONCE):
        block = tall[first : first + ROWS_AT_ONCE].astype(np.float64)
        gram += block.T @ block
    values: Array = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    return values


def _even(n: int, at_most: int) -> Array:
    """Numbers below n, evenly spaced, no more than so many."""
    step = -(-n // at_most) if n else 1
    return np.arange(0, n, step)


def _sizes(report: Report) -> Any:
    rows = sorted(report.rows, key=lambda row: -row.bytes_before)[:MAX_BARS]
    rows = [row for row in report.rows if row in rows]  # in the model's order
    figure, (axes,) = _figure(1, height=1.6 + 0.22 * len(rows))
    at = np.arange(len(rows))
    most = max((row.bytes_before for row in rows), default=0)
    unit, name = next(((u, n) for u, n in UNITS if most >= u), UNITS[-1])
    before, after = ([(n or 0) / unit for n in sizes] for sizes in _both_sizes(rows))
    axes.barh(at, before, 0.8, color="#d4d8de", label="before")
    axes.barh(at, after, 0.45, color=COLORS[0], label="after")
    axes.set_yticks(at, [_short(row.name) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(name)
    some = f"the {len(rows)} largest of " if len(rows) < len(report.rows) else ""
    axes.set_title(
        f"{some}{len(report.rows)} tensors; files: {report.file_bytes_before:,} → "
        f"{report.file_bytes_after or 0:,} bytes",
        fontsize=9,
    )
    axes.legend(frameon=False)
    return figure


def _both_sizes(rows: Sequence[TensorRow]) -> tuple[list[int], list[int | None]]:
    return [row.bytes_before for row in rows], [row.bytes_after for row in rows]


def _errors(report: Report, matrices: Sequence[_Matrix]) -> Any:
    figure, (axes,) = _figure(1, height=5.2)
    methods = sorted({row.method for row in report.compressed})
    whole = [matrix for matrix in matrices if matrix.is_whole]
    for matrix in whole:
        bits, error = _svd_curve(matrix)
        label = "truncated singular values" if matrix is whole[0] else None
        axes.plot(bits, error, color="#9aa3ad", linewidth=0.8, zorder=1, label=label)
    rows = [row for row in report.compressed if row.relative_error]
    for number, method in enumerate(methods):
        points = [(r.bits_per_weight, r.relative_error) for r in rows if r.method == method]
        if points:
            axes.scatter(*zip(*points, strict=True), 22, COLORS[number % len(COLORS)], label=method)
    grid = np.linspace(0.1, 8, 80)
    axes.plot(grid, 4.0**-grid, "k:", linewidth=0.8, label=r"Gaussian limit, $4^{-\mathrm{bits}}$")
    axes.set_yscale("log")
    least = min((row.relative_error or 1 for row in rows), default=1e-4)
    axes.set_ylim(max(1e-6, least / 4), 1.5)
    axes.set_xlim(0, max([8.0, *(1.1 * (row.bits_per_weight or 0) for row in rows)]))
    axes.set_xlabel("bits a weight, tables and indices included")
    axes.set_ylabel("‖W − Ŵ‖² / ‖W‖²")
    axes.set_title(f"{len(rows)} compressed matrices, curves of {len(whole)}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _svd_curve(matrix: _Matrix) -> tuple[Array, Array]:
    """Bits a weight and error of every rank, factors in the tensor's own dtype."""
    energy = matrix.spectrum**2
    left = np.maximum(energy.sum() - np.cumsum(energy), 0)
    rows, columns = matrix.row.shape[0], int(np.prod(matrix.row.shape[1:]))
    rank = np.arange(1, len(energy) + 1)
    bits = 8 * matrix.row.bytes_before * rank * (rows + columns) / (rows * columns) ** 2
    return bits, left / max(float(energy.sum()), 1e-300)


def _singular_values(report: Report, matrices: Sequence[_Matrix]) -> Any:
    figure, panels = _figure(len(matrices))
    for axes, matrix in zip(panels, matrices, strict=True):
        values = matrix.spectrum / max(float(matrix.spectrum.max()), 1e-300)
        axes.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-8), color=COLORS[0])
        axes.set_yscale("log")
        axes.set_title(f"{_short(matrix.row.name)}\n{matrix.spectrum_of}", fontsize=7)
        axes.tick_params(labelsize=7, which="both")
    _heading(figure, report, matrices, "Singular values over the largest")
    return figure


def _values(report: Report, matrices: Sequence[_Matrix]) -> Any:
    figure, panels = _figure(len(matrices))
    for axes, matrix in zip(panels, matrices, strict=True):
        low, high = np.quantile(matrix.before, [0.0005, 0.9995])
        edges = np.linspace(low, high if high > low else low + 1, N_BINS + 1)
        axes.hist(matrix.after, edges, color=COLORS[1], label="after")
        axes.hist(matrix.before, edges, histtype="step", color="#303030", lw=0.7, label="before")
        axes.set_yscale("log")
        title = f"{_short(matrix.row.name)}: {matrix.row.method}\n{matrix.values_of}"
        axes.set_title(title, fontsize=7)
        axes.tick_params(labelsize=7, which="both")
    panels[0].legend(frameon=False, fontsize=7)
    _heading(figure, report, matrices, "Weights before and after, 99.9 % of them")
    return figure


def _heading(figure: Any, report: Report, matrices: Sequence[_Matrix], text: str) -> None:
    n = len(report.compressed)
    some = f"the {len(matrices)} largest of {n}" if len(matrices) < n else f"all {n}"
    figure.suptitle(f"{text}; {some} compressed matrices", fontsize=9)


def _figure(n_panels: int, height: float | None = None) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(n_panels, 4)
    rows = -(-n_panels // columns)
    width = 8.0 if columns == 1 else 2.8 * columns
    figure = Figure(figsize=(width, height or 1.0 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    for axes in panels[:n_panels]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels[:n_panels])


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"…{name[-35:]}"
