"""Figures of what a run did."""

from .draw import require_matplotlib, save_figures

__all__ = ["require_matplotlib", "save_figures"]
