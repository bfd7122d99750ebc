"""Draw what a search for convolutions to factor has measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .panels import COLORS, GREY, MARKERS, panels_of, require_matplotlib, save, short

if TYPE_CHECKING:  # PyTorch is needed to search, not to draw
    from ..torch.search_report import SearchResult, SearchRow

LABELS = {"seconds": "times faster", "bytes": "times smaller"}


def save_search_figure(
    found: SearchResult, path: str | os.PathLike[str], *, over: str = "seconds"
) -> None:
    """Draw what each candidate of a search gains and what quality the network has with it alone.

    Parameters
    ----------
    found : SearchResult
        From :func:`fastfactor.torch.search_convolutions`.
    path : path
        A PNG file; an existing one is replaced. There is a panel for each layer, a point for each
        candidate that gained something, and a ring around the chosen ones. Lines are the qualities
        of the dense network and of the one with all that was chosen.
    over : {"seconds", "bytes"}
        What is on the axis below: the layer's time, or the bytes of its weight.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        For another axis, and if no candidate gained anything.
    OSError
        If the file cannot be written.
    """
    if over not in LABELS:
        raise ValueError(f"over must be one of {', '.join(map(repr, LABELS))}, got {over!r}")
    require_matplotlib()
    save(search_figure(found, over), path)


def search_figure(found: SearchResult, over: str) -> Any:
    """Return the figure of a search."""
    layers: dict[str, list[SearchRow]] = {}
    for row in found.rows:
        if row.quality is not None:
            layers.setdefault(row.name, []).append(row)
    if not layers:
        raise ValueError("a candidate must have gained something, got none")
    methods = sorted({_method(row) for rows in layers.values() for row in rows})
    figure, panels = panels_of(len(layers), margin=0.6)
    for axes, (name, rows) in zip(panels, layers.items(), strict=True):
        axes.axhline(found.quality_dense, color=GREY, linewidth=1, label="dense network")
        axes.axhline(found.quality, color=GREY, linewidth=1, ls=":", label="all chosen")
        for k, method in enumerate(methods):
            style = {"color": COLORS[k % len(COLORS)], "marker": MARKERS[k % len(MARKERS)]}
            own = [row for row in rows if _method(row) == method]
            axes.scatter(*_points(own, over), s=18, alpha=0.75, label=method, **style)
        ring = {"s": 90, "facecolors": "none", "edgecolors": "black", "linewidths": 1}
        chosen = [row for row in rows if row.chosen]
        axes.scatter(*_points(chosen, over), label="chosen", **ring)
        axes.set_title(short(name), fontsize=7)
        axes.tick_params(labelsize=7)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7
    )
    figure.supxlabel(LABELS[over], fontsize=8)
    figure.supylabel("quality with this layer factored", fontsize=8)
    figure.suptitle(found.to_text().splitlines()[-1], fontsize=9)
    return figure


def _method(row: SearchRow) -> str:
    return row.method.partition("(")[0]


def _points(rows: Iterable[SearchRow], over: str) -> tuple[list[float], list[float | None]]:
    gains = [
        row.seconds_dense / row.seconds_factors
        if over == "seconds"
        else row.bytes_dense / row.bytes_factors
        for row in rows
    ]
    return gains, [row.quality for row in rows]
