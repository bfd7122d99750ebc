"""Patterns of names, by which a caller chooses layers and weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase


def patterns(given: str | Iterable[str] | None, name: str) -> tuple[str, ...] | None:
    """Return the patterns of an argument; None if it was left out.

    Raises
    ------
    TypeError
        If one is no text.
    """
    if given is None:
        return None
    found = (given,) if isinstance(given, str) else tuple(given)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must be patterns of names, got {pattern!r}")
    return found


def matches(name: str, patterns: tuple[str, ...] | None) -> bool:
    """Return whether a name matches one of some patterns."""
    return patterns is not None and any(fnmatchcase(name, pattern) for pattern in patterns)


def check_matched(patterns: Iterable[str], names: Collection[str], what: str) -> None:
    """Check that each pattern matches a name; ``*`` need not.

    Raises
    ------
    ValueError
        For one that matches none.
    """
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"patterns must match names of {what}, got {pattern!r}")
