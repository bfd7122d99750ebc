"""The command line of fastfactor."""

from .app import main

__all__ = ["main"]
