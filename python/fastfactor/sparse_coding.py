"""Sparse coding: each sample as a combination of few atoms of a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._core import kernels
from .sparse import CSR


def omp(
    X: Any,
    dictionary: Any,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    selection: str = "omp",
    n_threads: int | None = None,
) -> CSR:
    """Code every row of ``X`` by orthogonal matching pursuit.

    Atoms are taken one at a time, the one most correlated with what is left first, and after each
    the coefficients of all that were taken are the least-squares ones. A row stops at
    ``n_nonzero_coefs`` atoms or at a squared error of ``tol``, whichever comes first; and always
    when nothing is left, when the next atom depends linearly on those taken, or when
    min(n_atoms, n_features) are taken, so that both limits may be larger than makes sense.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides. Read block by block, never copied whole.
    dictionary : array of shape (n_atoms, n_features)
        The atoms. They need not have unit norm: as in scikit-learn the next atom is the one with
        the largest ``|⟨residual, atom⟩|``, so that a longer atom is preferred.
    n_nonzero_coefs : int, optional
        The most atoms a row may use. With neither this nor ``tol``: max(1, n_features // 10).
    tol : float, optional
        The squared error ``‖x − code · dictionary‖²`` at which a row is done, in the units of X².
    gram : array of shape (n_atoms, n_atoms), optional
        ``dictionary @ dictionary.T``, where the caller has it.
    selection : {"omp", "ols"}
        ``"ols"`` (order-recursive matching pursuit, orthogonal least squares) takes the atom that
        lowers the error most once it is fitted together with the others; it costs one more vector
        of n_atoms a row and step.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    CSR of shape (n_samples, n_atoms)
        Columns ascending in each row; float64 if X or the dictionary is, else float32. So that
        ``spmm(codes, dictionary) ≈ X``.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, and for NaN or infinity in an operand.

    Notes
    -----
    For a row with k atoms: n_atoms · (2 · n_features + k²) operations, from the Gram matrix of the
    atoms (n_atoms² · n_features once) and a Cholesky factor that grows by a row an atom. Beside
    operands and result, memory is the Gram matrix plus up to 1.5 MB + (k + 60) · n_atoms numbers a
    thread. The same bits for any number of threads, and for a row coded alone or among others. Of
    equally correlated atoms the one with the lowest index is taken. An atom shorter than about
    1e-19 of the largest magnitude in the dictionary (float64: 1e-154) counts as zero.

    Sources: Pati, Rezaiifar, Krishnaprasad (1993); Rubinstein, Zibulevsky, Elad (2008) for the Gram
    form; Chen, Billings, Luo (1989) for orthogonal least squares.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> atoms = np.eye(4, dtype=np.float32)
    >>> codes = fastfactor.omp(np.array([[0, 3, 0, -1]], np.float32), atoms, n_nonzero_coefs=2)
    >>> codes.indices, codes.data
    (array([1, 3], dtype=int32), array([ 3., -1.], dtype=float32))
    """
    X = _checks.float_array(X, "X", ndim=(2,))
    dictionary = _checks.float_array(dictionary, "dictionary", ndim=(2,))
    n_atoms, n_features = dictionary.shape
    if n_features == 0 or n_atoms == 0:
        raise ValueError(
            f"dictionary must have at least one atom and one feature, got shape {dictionary.shape}"
        )
    _checks.integer(n_atoms, "the number of atoms in dictionary", 1, 2**31 - 1)
    if X.shape[1] != n_features:
        raise ValueError(
            f"X must have as many columns as the dictionary, {n_features}, got shape {X.shape}"
        )
    if gram is not None:
        gram = _checks.float_array(gram, "gram", ndim=(2,))
        if gram.shape != (n_atoms, n_atoms):
            raise ValueError(f"gram must have shape {(n_atoms, n_atoms)}, got {gram.shape}")
    if n_nonzero_coefs is not None:
        limit = _checks.integer(n_nonzero_coefs, "n_nonzero_coefs", 1)
    elif tol is None:
        limit = max(1, n_features // 10)
    else:
        limit = n_features
    max_error = -1.0 if tol is None else _checks.nonnegative(tol, "tol")
    _checks.choice(selection, "selection", ("omp", "ols"))
    data, indices, indptr = kernels.omp(
        X,
        dictionary,
        gram=gram,
        max_nonzeros=min(limit, n_atoms, n_features),
        tol=max_error,
        orthogonal_select=selection == "ols",
        as_double=_checks.result_dtype(X, dictionary) is np.float64,
        n_threads=_checks.threads(n_threads),
    )
    return CSR._trusted(data, indices, indptr, (X.shape[0], n_atoms))
