"""The one exception that is fastfactor's own."""

from __future__ import annotations


class CorruptDataError(ValueError):
    """Stored bytes that contradict themselves: cut, changed, or not what they are said to be.

    Attributes
    ----------
    args : tuple
        The message, as of any exception.

    Examples
    --------
    >>> import fastfactor
    >>> try:
    ...     fastfactor.PackedCodes(bytes([0b11011011]), 2, (1, 3))
    ... except fastfactor.CorruptDataError as error:
    ...     print(error)
    data must have zeros after the last code of a row, got 0b11011011 with 6 bits in use as ...
    """
