"""Pictures of what a run did."""

from .draw import need_matplotlib, save_figures

__all__ = ["need_matplotlib", "save_figures"]
