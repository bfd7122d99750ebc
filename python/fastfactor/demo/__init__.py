"""The demonstration: a small trained network, compressed by every method and run from files."""

from .run import Row, run_demo

__all__ = ["Row", "run_demo"]
