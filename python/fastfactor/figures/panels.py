"""What all figures have in common: panels, colors, names, and how they are saved."""

from __future__ import annotations

import os
import warnings
from typing import Any

from ..files.disk import atomic_write
from ..models.report import printable

# Colors that color-blind people can tell apart: M. Okabe and K. Ito, Color Universal Design, 2008.
# Where there are more methods than colors, markers tell them apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
GREY = "#8a939c"


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

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


def panels_of(
    n_panels: int, *, height: float | None = None, most: int = 4, margin: float = 0.0
) -> tuple[Any, list[Any]]:
    """Return a figure and its ``n_panels`` panels, at most ``most`` of them in a row."""
    from matplotlib.figure import Figure

    columns = min(n_panels, most)
    rows = -(-n_panels // columns)
    width = 8.0 if height is not None else max(11.2 / most * columns, 5.6)
    figure = Figure(figsize=(width, height or 1.0 + margin + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    for axes in panels[:n_panels]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels[:n_panels])


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all."""
    with warnings.catch_warnings():
        # A name in a script that no installed font has is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        with atomic_write(path) as file:
            figure.savefig(file, dpi=120, format="png")


def short(name: str) -> str:
    """Return a name as a title shows it."""
    name = printable(name if len(name) <= 36 else f"…{name[-35:]}")
    return name.replace("$", r"\$")  # matplotlib reads text between two $ as mathematics
