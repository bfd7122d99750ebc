"""Sparse coding: each sample becomes a combination of a few atoms of a dictionary."""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import LinearDependenceWarning
from .pursuits import exchanged, hashed_pursuit, pursuit
from .sparse import CSR


def omp(
    X: Any,
    dictionary: Any,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    criterion: str = "correlation",
    n_threads: int | None = None,
) -> CSR:
    """Code every row of ``X`` by orthogonal matching pursuit.

    Each step takes the atom most correlated with the residual, and then fits the coefficients of
    all atoms taken so far by least squares. A row stops at ``n_nonzero_coefs`` atoms or at a
    squared error of ``tol``, whichever comes first. It also stops when the residual is zero, when
    the next atom depends linearly on those taken, or when min(n_atoms, n_features) are taken, so
    both limits may be larger than makes sense.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides. Read block by block, never copied whole.
    dictionary : array of shape (n_atoms, n_features)
        The atoms. They need not have unit norm: as in scikit-learn the next atom is the one with
        the largest ``|⟨residual, atom⟩|``, so longer atoms are preferred.
    n_nonzero_coefs : int, optional
        The most atoms a row may use. With neither this nor ``tol``: max(1, n_features // 10).
    tol : float, optional
        The squared error ``‖x − code · dictionary‖²`` at which a row is done, in the units of X²,
        as in scikit-learn.
    gram : array of shape (n_atoms, n_atoms), optional
        ``dictionary @ dictionary.T``, if the caller has it already.
    criterion : {"correlation", "ols"}
        Which atom is taken next. ``"correlation"``: the one most correlated with the residual.
        ``"ols"`` (orthogonal least squares, order-recursive matching pursuit): the one that
        lowers the error most once it is fitted together with the others; this costs one more
        vector of n_atoms numbers for each row and step.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    CSR of shape (n_samples, n_atoms)
        ``spmm(codes, dictionary) ≈ X``. Columns ascend in each row; float64 if X or the dictionary
        is, else float32.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, for NaN or infinity in an operand, and for coefficients
        that are too large for the codes' dtype.

    Warns
    -----
    LinearDependenceWarning
        If rows end before either limit although an error is left: every other atom depends
        linearly on those taken, or is orthogonal to what is left.

    Notes
    -----
    A row with k atoms takes n_atoms · (2 · n_features + k²) operations, given the Gram matrix of
    the atoms (n_atoms² · n_features once) and a Cholesky factor that grows by one row per atom.
    Besides operands and result, memory is the Gram matrix plus up to 1.5 MB + (k + 60) · n_atoms
    numbers per thread. The same bits for any number of threads, and for a row coded alone or among
    others. Ties go to the atom with the lowest index. Rows for which float32 is too coarse, because
    atoms depend on each other almost linearly, are coded in float64. An atom shorter than about
    1e-154 of the largest magnitude in the dictionary counts as zero.

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
    codes, n_early = pursuit(
        X,
        dictionary,
        n_nonzero_coefs=n_nonzero_coefs,
        tol=tol,
        gram=gram,
        criterion=criterion,
        n_threads=n_threads,
    )
    _warn_of_early_rows(n_early, codes)
    return codes


def hashed_omp(
    X: Any,
    dictionary: Any,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    probe_fraction: float | None = None,
    n_tables: int = 8,
    hash_bits: int | None = None,
    random_state: Any = 0,
    n_threads: int | None = None,
) -> CSR:
    """Code every row of ``X`` over a large dictionary by a matching pursuit that tries few atoms.

    This works like :func:`omp`, but a step takes the best of those atoms that hash tables find near
    the residual, not of all. Coefficients are fitted by least squares as there. If the tables find
    no atom that lowers the error, the step tries all atoms, so a row ends only where ``omp`` would
    end it. It is faster than ``omp`` from about 8,000 atoms on.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides. Read block by block, never copied whole.
    dictionary : array of shape (n_atoms, n_features)
        The atoms; longer ones are preferred, as in :func:`omp`.
    n_nonzero_coefs : int, optional
        The most atoms a row may use. With neither this nor ``tol``: max(1, n_features // 10).
    tol : float, optional
        The squared error ``‖x − code · dictionary‖²`` at which a row is done, in the units of X²,
        as in scikit-learn.
    probe_fraction : float, optional
        The approximate fraction of the atoms that a step tries, in (0, 1]. A larger fraction is
        slower and lowers the error. Default: 8 / √n_atoms, at most 1.
    n_tables : int
        In [1, 256]. Every table holds all atoms.
    hash_bits : int, optional
        In [0, 20]: a table has 2**hash_bits buckets. With more buckets the atoms that a step tries
        are nearer, but finding the buckets takes longer. With 0 every step tries all atoms. By
        default a bucket holds about 64 atoms.
    random_state : int, Generator, RandomState or None
        Seed of the directions that buckets stand for; None draws a fresh one at each call.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    CSR of shape (n_samples, n_atoms)
        ``spmm(codes, dictionary) ≈ X``. Columns ascend in each row; float64 if X or the dictionary
        is, else float32.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, for NaN or infinity in an operand, and for coefficients
        that are too large for the codes' dtype.

    Warns
    -----
    LinearDependenceWarning
        As :func:`omp` does.

    Notes
    -----
    A table is 2^hash_bits random directions, from rotations by signs and Hadamard transforms. An
    atom is filed under the direction nearest to it or to its negative. A row looks under all
    directions whose cosine with its residual is at least what a fraction of ``probe_fraction /
    n_tables`` of random directions reach. This takes n_tables · 2^hash_bits · log(n_features) +
    probe_fraction · n_atoms · n_features operations per row and step, where trying all atoms takes
    n_atoms · n_features. The Gram matrix is not needed: memory is (n_tables + 2) · n_atoms ·
    n_features numbers, more if buckets hold fewer atoms than a vector, and up to about 70 MB per
    thread; 600 MB if rows take many atoms, plus 200 bytes per bucket if there are hundreds of
    thousands.

    With the defaults, residuals are 4 to 5 % longer than those of ``omp`` for rows of an embedding
    table and for random rows. For signals that are sums of a few atoms and little noise they are
    2 to 3 times as long, because a missed atom is most of what remains. A larger
    ``probe_fraction`` helps.

    The same bits for any number of threads, and for a row coded alone or among others. Ties go to
    the atom with the lowest index. As in :func:`omp`, the choice between two atoms of nearly the
    same correlation may differ between instruction-set levels.

    Sources: P. Indyk, R. Motwani (1998); M. Charikar (2002); A. Andoni et al., Practical and
    optimal LSH for angular distance (2015); A. Becker et al. (2016) for looking under all near
    directions; Pati, Rezaiifar, Krishnaprasad (1993) for the pursuit.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> atoms = np.random.default_rng(0).standard_normal((4096, 16), dtype=np.float32)
    >>> X = 3 * atoms[[7, 4000]] - atoms[[20, 30]]
    >>> codes = fastfactor.hashed_omp(X, atoms, n_nonzero_coefs=4)
    >>> left = X - fastfactor.spmm(codes, atoms)
    >>> bool((left**2).sum() < 0.1 * (X**2).sum())
    True
    """
    codes, n_early = hashed_pursuit(
        X,
        dictionary,
        n_nonzero_coefs=n_nonzero_coefs,
        tol=tol,
        probe_fraction=probe_fraction,
        n_tables=n_tables,
        hash_bits=hash_bits,
        random_state=random_state,
        n_threads=n_threads,
    )
    _warn_of_early_rows(n_early, codes)
    return codes


def exchange_atoms(
    X: Any,
    dictionary: Any,
    codes: CSR,
    *,
    max_exchanges: int | None = None,
    gram: Any = None,
    n_threads: int | None = None,
) -> CSR:
    """Lower the error of sparse codes by exchanging their atoms, one at a time.

    A pursuit never removes an atom again. Here every row exchanges one of its atoms for the one
    that lowers its error most, until no exchange lowers it. The number of its atoms stays the same.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        float16, bfloat16, float32 or float64, any strides. Read block by block, never copied whole.
    dictionary : array of shape (n_atoms, n_features)
        The atoms, of any norms.
    codes : CSR of shape (n_samples, n_atoms)
        From :func:`omp`, :func:`hashed_omp` or elsewhere. All stored entries count as atoms of
        their row, even with a coefficient of zero.
    max_exchanges : int, optional
        The most exchanges per row; 0 only fits the coefficients by least squares. Default: as many
        as the row has atoms.
    gram : array of shape (n_atoms, n_atoms), optional
        ``dictionary @ dictionary.T``, if the caller has it already.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    CSR of shape (n_samples, n_atoms)
        Least-squares coefficients of each row's atoms after the exchanges, columns ascending;
        float64 if X or the dictionary is, else float32. A row whose atoms are linearly dependent,
        such as one that has an atom twice, is left unchanged.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, for NaN or infinity in an operand, and for coefficients
        that are too large for the codes' dtype.

    Warns
    -----
    LinearDependenceWarning
        If rows are left unchanged because their atoms are linearly dependent.

    Notes
    -----
    A row with k atoms takes 2 · n_atoms · n_features operations, given the Gram matrix of the atoms
    (n_atoms² · n_features once), and n_atoms · (2 k² + 9 k) + 2 k³ + 6 k · n_features for each
    exchange and once more to find that no other lowers the error. Codes of 5 of 256 atoms of 64
    elements take 1.5 µs per row on one thread, where ``omp`` takes 0.55. Memory is as for ``omp``,
    plus a copy of the dictionary. An exchange must lower a row's squared error by a millionth.
    Coefficients and errors are refined in float64 from the residual. The same bits for any number
    of threads, and for a row coded alone or among others. Ties go to the atom with the lowest
    index.

    Sources: Fedorov (1972), for the exchange; Jain, Tewari, Dhillon (2011), orthogonal matching
    pursuit with replacement.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> atoms = np.array([[1, 0, 0], [0, 1, 0], [0.8, 0.8, 0.1]], np.float32)
    >>> X = np.array([[1, 1, 0]], np.float32)
    >>> codes = fastfactor.omp(X, atoms, n_nonzero_coefs=2)
    >>> codes.indices, fastfactor.exchange_atoms(X, atoms, codes).indices
    (array([0, 2], dtype=int32), array([0, 1], dtype=int32))
    """
    improved, n_unchanged = exchanged(
        X, dictionary, codes, max_exchanges=max_exchanges, gram=gram, n_threads=n_threads
    )
    if n_unchanged:
        warnings.warn(
            f"{n_unchanged} of {codes.shape[0]} rows were left unchanged: their atoms are linearly "
            f"dependent",
            LinearDependenceWarning,
            stacklevel=2,
        )
    return improved


def _warn_of_early_rows(n_early: int, codes: CSR) -> None:
    if n_early:
        warnings.warn(
            f"{n_early} of {codes.shape[0]} rows ended early, with an error left: every other atom "
            f"depends linearly on those taken, or is orthogonal to what is left",
            LinearDependenceWarning,
            stacklevel=3,
        )
