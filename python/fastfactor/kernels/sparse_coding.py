"""Sparse coding: each sample becomes a combination of a few atoms of a dictionary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _checks
from .._checks import Array
from .._core import kernels
from .runtime import thread_count
from .sparse import CSR

# Measured by bench/hashed_omp.py on pieces of 64 elements of wordllama's embedding table, over
# dictionaries of such pieces, with codes of 5 atoms and 8 tables. After each number of buckets and
# probe_fraction: the length of the residual relative to omp's, the same for planted signals (sums
# of a few atoms), and µs per row on one thread. omp takes 54 µs for 16,384 atoms, 13 for 4,096.
#   16,384 atoms   2^8, 0.1                1.028  1.75  26.5     2^7, 0.1    1.038  2.42  21.5
#                  2^8, 0.06               1.046  2.33  19.1     2^7, 0.07   1.052  2.97  17.5
#                  2^7, 0.03               1.104  4.86  10.8
#   65,536 atoms   2^10, 0.035             1.036  1.63  63       2^9, 0.035  1.048  2.11  50
#    4,096 atoms   2^6, 0.14               1.041  2.09   9.3     2^5, 0.14   1.058  3.64   8.1
PROBE_SCALE = 8  # the default probe_fraction is this over √n_atoms
ATOMS_PER_BUCKET = 64
MAX_BITS = 20


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
        For a wrong type, shape or limit, and for NaN or infinity in an operand.

    Notes
    -----
    A row with k atoms takes n_atoms · (2 · n_features + k²) operations, given the Gram matrix of
    the atoms (n_atoms² · n_features once) and a Cholesky factor that grows by one row per atom.
    Besides operands and result, memory is the Gram matrix plus up to 1.5 MB + (k + 60) · n_atoms
    numbers per thread. The same bits for any number of threads, and for a row coded alone or among
    others. Ties go to the atom with the lowest index. An atom shorter than about 1e-19 of the
    largest magnitude in the dictionary (float64: 1e-154) counts as zero.

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
    X, dictionary = _operands(X, dictionary)
    n_atoms = len(dictionary)
    gram = _products(gram, n_atoms)
    limits = _limits(dictionary, n_nonzero_coefs, tol)
    _checks.choice(criterion, "criterion", ("correlation", "ols"))
    data, indices, indptr = kernels.omp(
        X,
        dictionary,
        gram=gram,
        **limits,
        orthogonal_select=criterion == "ols",
        as_double=_checks.result_dtype(X, dictionary) is np.float64,
        n_threads=thread_count(n_threads),
    )
    return CSR._trusted(data, indices, indptr, (X.shape[0], n_atoms))


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
        For a wrong type, shape or limit, and for NaN or infinity in an operand.

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
    X, dictionary = _operands(X, dictionary)
    n_atoms, n_features = dictionary.shape
    limits = _limits(dictionary, n_nonzero_coefs, tol)
    if probe_fraction is None:
        probe_fraction = min(1.0, PROBE_SCALE / n_atoms**0.5)
    probe_fraction = _checks.fraction(probe_fraction, "probe_fraction")
    n_tables = _checks.integer(n_tables, "n_tables", 1, 256)
    if hash_bits is None:
        hash_bits = min(max(round(math.log2(n_atoms / ATOMS_PER_BUCKET)), 0), MAX_BITS)
    hash_bits = _checks.integer(hash_bits, "hash_bits", 0, MAX_BITS)
    data, indices, indptr = kernels.hashed_omp(
        X,
        dictionary,
        **limits,
        n_tables=n_tables,
        n_bits=hash_bits,
        threshold=_threshold(probe_fraction / n_tables, n_features),
        seed=_checks.seed(random_state),
        as_double=_checks.result_dtype(X, dictionary) is np.float64,
        n_threads=thread_count(n_threads),
    )
    return CSR._trusted(data, indices, indptr, (X.shape[0], n_atoms))


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
        For a wrong type, shape or limit, and for NaN or infinity in an operand.

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
    X, dictionary = _operands(X, dictionary)
    n_atoms = len(dictionary)
    if not isinstance(codes, CSR):
        raise TypeError(f"codes must be a CSR, got {type(codes).__name__}")
    if codes.shape != (len(X), n_atoms):
        raise ValueError(f"codes must have shape {(len(X), n_atoms)}, got {codes.shape}")
    if max_exchanges is not None:
        max_exchanges = _checks.integer(max_exchanges, "max_exchanges", 0, 2**31 - 1)
    data, indices = kernels.exchange_atoms(
        X,
        dictionary,
        gram=_products(gram, n_atoms),
        data=codes.data,
        indices=codes.indices,
        indptr=codes.indptr,
        max_exchanges=-1 if max_exchanges is None else max_exchanges,
        as_double=_checks.result_dtype(X, dictionary) is np.float64,
        n_threads=thread_count(n_threads),
    )
    return CSR._trusted(data, indices, codes.indptr, codes.shape)


def _operands(X: Any, dictionary: Any) -> tuple[Array, Array]:
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
    return X, dictionary


def _products(gram: Any, n_atoms: int) -> Array | None:
    if gram is None:
        return None
    products: Array = _checks.float_array(gram, "gram", ndim=(2,))
    if products.shape != (n_atoms, n_atoms):
        raise ValueError(f"gram must have shape {(n_atoms, n_atoms)}, got {products.shape}")
    return products


def _limits(dictionary: Array, n_nonzero_coefs: int | None, tol: float | None) -> dict[str, Any]:
    """Return the limits of a code as arguments of the kernels."""
    n_atoms, n_features = dictionary.shape
    if n_nonzero_coefs is not None:
        limit = _checks.integer(n_nonzero_coefs, "n_nonzero_coefs", 1)
    elif tol is None:
        limit = max(1, n_features // 10)
    else:
        limit = n_features
    max_error = -1.0 if tol is None else _checks.nonnegative(tol, "tol")
    return {"max_nonzeros": min(limit, n_atoms, n_features), "tol": max_error}


def _threshold(chance: float, n_features: int) -> float:
    """Return the |cosine| that a random direction exceeds with probability ``chance``.

    A cosine is t / √(n − 1 + t²) for Student's t with n − 1 degrees of freedom, approximated by a
    normal t; n is n_features rounded up to the power of two that rotations need.
    """
    from statistics import NormalDist  # imported here: it takes longer than this whole package

    n = 1 << (n_features - 1).bit_length()
    t = -NormalDist().inv_cdf(max(chance, 1e-30) / 2)
    return t / math.sqrt(n - 1 + t * t) if t > 0 else 0.0
