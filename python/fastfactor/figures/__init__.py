"""Figures of what a run did."""

from .draw import save_figures
from .panels import require_matplotlib
from .search import save_search_figure

__all__ = ["require_matplotlib", "save_figures", "save_search_figure"]
