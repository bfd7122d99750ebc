"""The exception that fastfactor defines."""

from __future__ import annotations


class CorruptDataError(ValueError):
    """The error for stored bytes that are truncated, changed or inconsistent.

    Attributes
    ----------
    args : tuple
        The message, as in any exception.

    Examples
    --------
    >>> import fastfactor
    >>> try:
    ...     fastfactor.PackedCodes(bytes([0b11011011]), 2, (1, 3))
    ... except fastfactor.CorruptDataError as error:
    ...     print(error)
    data must have zeros after the last code of a row, got 0b11011011 with 6 bits in use as ...
    """
