"""Objects that hold arrays: shown in one line, copied and pickled without losing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

import numpy as np


class ArrayRecord:
    """A base for frozen dataclasses with arrays in their fields, declared with ``repr=False``.

    A copy or pickle holds only the fields; cached properties are computed again when they are
    needed. Read-only arrays stay read-only, which NumPy's own pickles do not ensure.
    """

    def __repr__(self) -> str:
        return short_repr(self, _field_values(self))

    def __getstate__(self) -> tuple[dict[str, Any], list[str]]:
        values = _field_values(self)
        read_only = [
            name
            for name, value in values.items()
            if isinstance(value, np.ndarray) and not value.flags.writeable
        ]
        return values, read_only

    def __setstate__(self, state: tuple[dict[str, Any], list[str]]) -> None:
        values, read_only = state
        for name in read_only:
            values[name].setflags(write=False)
        self.__dict__.update(values)


def short_repr(value: object, parts: Mapping[str, Any]) -> str:
    """Return ``Name(part=…, …)`` with arrays shown as dtype and shape: ``float32[8, 64]``."""
    shown = ", ".join(f"{name}={_shown(part)}" for name, part in parts.items())
    return f"{type(value).__name__}({shown})"


def refuse_array(value: object, instead: str) -> NoReturn:
    """Raise the error for ``np.asarray(value)``: a dense array must be asked for explicitly.

    Without this error NumPy would make an array of one Python object.
    """
    raise TypeError(
        f"{type(value).__name__} must be turned into an array by {instead}, "
        "got an implicit conversion"
    )


def _field_values(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _shown(part: Any) -> str:
    if isinstance(part, np.ndarray):
        return f"{part.dtype}{list(part.shape)}"
    return repr(part)
