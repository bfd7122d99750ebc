"""The pursuits behind sparse coding: codes, and how many rows ended early."""

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


def pursuit(
    X: Any,
    dictionary: Any,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    criterion: str = "correlation",
    n_threads: int | None = None,
) -> tuple[CSR, int]:
    """Do the work of :func:`omp`; return the codes and the number of rows that ended early."""
    X, dictionary = _operands(X, dictionary)
    n_atoms = len(dictionary)
    gram = _products(gram, n_atoms)
    limits = _limits(dictionary, n_nonzero_coefs, tol)
    _checks.choice(criterion, "criterion", ("correlation", "ols"))
    result = kernels.omp(
        X,
        dictionary,
        gram=gram,
        **limits,
        orthogonal_select=criterion == "ols",
        as_double=_checks.result_dtype(X, dictionary) is np.float64,
        n_threads=thread_count(n_threads),
    )
    return _codes(result, (X.shape[0], n_atoms))


def hashed_pursuit(
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
) -> tuple[CSR, int]:
    """Do the work of :func:`hashed_omp`; return codes and the number of rows that ended early."""
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
    result = kernels.hashed_omp(
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
    return _codes(result, (X.shape[0], n_atoms))


def exchanged(
    X: Any,
    dictionary: Any,
    codes: CSR,
    *,
    max_exchanges: int | None = None,
    gram: Any = None,
    n_threads: int | None = None,
) -> tuple[CSR, int]:
    """Do the work of :func:`exchange_atoms`; return codes and the number of unchanged rows."""
    X, dictionary = _operands(X, dictionary)
    n_atoms = len(dictionary)
    if not isinstance(codes, CSR):
        raise TypeError(f"codes must be a CSR, got {type(codes).__name__}")
    if codes.shape != (len(X), n_atoms):
        raise ValueError(f"codes must have shape {(len(X), n_atoms)}, got {codes.shape}")
    if max_exchanges is not None:
        max_exchanges = _checks.integer(max_exchanges, "max_exchanges", 0, 2**31 - 1)
    data, indices, n_unchanged = kernels.exchange_atoms(
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
    return _codes((data, indices, codes.indptr, n_unchanged), codes.shape)


def _codes(result: tuple[Array, Array, Array, int], shape: tuple[int, int]) -> tuple[CSR, int]:
    """Return what a kernel found as codes; refuse coefficients that their dtype cannot hold."""
    data, indices, indptr, n_rows = result
    if not np.isfinite(data).all():
        raise ValueError(
            f"X must have codes within the range of {data.dtype}, got a coefficient above "
            f"{np.finfo(data.dtype).max:.3g}: scale X or the dictionary"
        )
    return CSR._trusted(data, indices, indptr, shape), n_rows


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
