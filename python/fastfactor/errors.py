"""The exception and the warning that fastfactor defines."""

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


class LinearDependenceWarning(RuntimeWarning):
    """The warning that sparse codes have fewer atoms than were asked for, with an error left.

    Every other atom depends linearly on those that the row has, or is orthogonal to what is left of
    it. Rows whose error is zero do not cause it.

    Attributes
    ----------
    args : tuple
        The message, as in any warning.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np, fastfactor
    >>> twice = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     codes = fastfactor.omp(np.array([[1.0, 2.0, 3.0]]), twice, n_nonzero_coefs=2)
    >>> caught[0].category.__name__, codes.nnz
    ('LinearDependenceWarning', 1)
    """
