"""Dictionary learning: find atoms such that a few of them combine to each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array
from .._records import short_repr
from ..kernels.pursuits import hashed_pursuit, pursuit
from ..kernels.runtime import thread_count
from ..kernels.sparse import CSR, spmm
from .code_exchange import improved
from .code_products import ROWS_AT_ONCE
from .dictionary_update import DictionaryUpdate, sum_of_squares
from .initial_atoms import INITS, initial_atoms, unit_rows

SEARCHES = ("all", "hash")
# A batch must be small, so that its random noise frees atoms from poor minima, and large enough
# to tell atoms from noise. A refit sees batch / (1 - FORGETTING) signals. Measured on parts of
# wordllama's table with 15, 31, 62, 125 and 500 signals an atom (6 batch sizes each), the best
# numbers seen were 7, 10, 14, 20 and 40 an atom: they grow as the root. Two layers of a
# LeNet-300-100, two of a ResNet-20 and combinations of random atoms agree. A FORGETTING of 0.6
# needs fewer refits than 0.8: on workload a of bench/omp.py two passes leave an error of 0.0019
# in 0.44 s instead of 0.0022 in 0.61 s.
BATCH = 0.6  # times the root of n_samples · n_atoms
FORGETTING = 0.6  # the weight of earlier batches in the next refit
# Passes with small batches go on until this many signals were coded for each atom. With 512, 1024,
# 2048 and 4096 LeNet's first layer is left with errors of 0.0666, 0.0663, 0.0656 and 0.0654 at 3
# nonzeros, in 0.3, 0.5, 1.0 and 1.9 s; at 6 nonzeros with 0.0284, 0.0275, 0.0270 and 0.0266. The
# second layer at 3 nonzeros goes from 0.228 to 0.220.
SMALL_SIGNALS = 2048
MOST_SMALL_SIGNALS = 1 << 21  # for all atoms together: many thousand atoms would take hours
LEAST_SMALL_PASSES, MOST_SMALL_PASSES = 2, 200
LATE_PASSES = 20  # after the small batches, which then double with each pass up to all signals
LEAST_GAIN = 1e-3  # the relative gain in error that justifies another pass over all signals
PLAIN_EXPONENTS = 30  # X beyond 2**30 or below 2**-30 is scaled, so that squares stay in range


class DictionaryResult(NamedTuple):
    """The result of :func:`learn_dictionary`: ``X ≈ codes @ dictionary``.

    Attributes
    ----------
    codes : CSR of shape (n_samples, n_atoms)
        Coefficients of least squared error for the atoms chosen; columns ascend in each row.
    dictionary : array of shape (n_atoms, n_features)
        Atoms of unit norm; float64 if X is float64, else float32.
    error : float
        ‖X − codes · dictionary‖² / ‖X‖²; 0 if X is zero.
    n_iter : int
        Passes over the signals, without the final coding.
    """

    codes: CSR
    dictionary: Array
    error: float
    n_iter: int

    def __repr__(self) -> str:
        return short_repr(self, self._asdict())


def learn_dictionary(
    X: Any,
    n_atoms: int,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    criterion: str = "correlation",
    search: str = "all",
    exchange: bool = False,
    init: Any = "k-means++",
    batch_size: int | None = None,
    max_iter: int | None = None,
    random_state: Any = 0,
    n_threads: int | None = None,
) -> DictionaryResult:
    """Find atoms such that a few of them combine to each row of ``X``, and the combinations.

    Each step codes a batch of signals by :func:`omp`, then fits the dictionary of least squared
    error to all codes so far, where codes of earlier batches count less and less. Batches grow from
    pass to pass until a step takes all signals. The signals with the largest error replace atoms
    that hardly any code uses, and the second of two atoms that are nearly equal.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        Finite numbers of dtype float16, bfloat16, float32 or float64. X is read a batch at a time
        and is copied whole only when a step takes all signals, or when its largest magnitude is
        beyond 2³⁰ or below 2⁻³¹.
    n_atoms : int
        Rows of the dictionary. It may exceed the number of samples.
    n_nonzero_coefs : int, optional
        The most atoms that a row may use, as in :func:`omp`.
    tol : float, optional
        The squared error at which a row is done, in the units of X², as in :func:`omp`.
    criterion : {"correlation", "ols"}
        The rule by which atoms are chosen, as in :func:`omp`.
    search : {"all", "hash"}
        ``"hash"`` codes by :func:`hashed_omp`, which compares a signal with a few of the atoms
        only. It pays from about 8,000 atoms and needs ``criterion="correlation"``.
    exchange : bool
        Whether :func:`exchange_atoms` improves the codes in passes that take all signals at once,
        and in the final coding. The error falls at the same number of atoms a row; such passes take
        three to six times as long. Unless ``tol`` is given, a row keeps its code of the pass before
        if that leaves less error than the new one. Must be False with ``search="hash"``, because
        exchanges compare a signal with all atoms.
    init : {"k-means++", "rows", "neighbours"} or array of shape (n_atoms, n_features)
        Initial atoms. ``"k-means++"`` draws signals in rounds, with probabilities proportional to
        the squared error that the best single atom drawn so far leaves. ``"rows"`` draws nonzero
        signals with equal probabilities. ``"neighbours"`` draws four times as many signals as
        atoms and keeps those that explain most energy of the signals to which they are nearest
        in angle.
    batch_size : int, optional
        Signals in each step of the first passes; it doubles in each later pass. Default:
        0.6 · √(n_samples · n_atoms). With n_samples or more every step takes all signals (method of
        optimal directions).
    max_iter : int, optional
        The most passes over the signals; 0 codes by the initial atoms. Default: 2 to 200 passes
        with small batches, until 2048 signals were coded for each atom or 2 million in all, then up
        to 20 passes with growing batches. If ``max_iter`` is given, small batches take at most half
        of it, or 2 passes where that is more.
    random_state : int, Generator, RandomState or None
        Seed of the initial atoms and of the order of signals. None draws a fresh seed at each call.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    DictionaryResult
        With fields codes, dictionary, error and n_iter. The codes are found once more after the
        last refit, for the dictionary that is returned.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, and for NaN or infinity.

    Notes
    -----
    A pass codes each signal once (:func:`omp` states the cost), sums the products of its k
    coefficients in k² / 2 additions, and solves for the atoms once a batch, in up to 40 products by
    a matrix of n_atoms² numbers. Besides operands and result, memory is n_atoms² numbers and a
    batch. Beyond 4096 atoms the solver multiplies by the codes of some recent batches instead, and
    these are what it holds. Learning ends after a pass over all signals that lowers the error by
    less than 0.1 %.

    Sums are float64. They and the solver (conjugate gradients that start from the previous atoms)
    run in this package's own loops, so that results have the same bits for any number of threads.

    Sources: K. Engan, S. Aase, J. Husøy, Method of optimal directions, 1999; J. Mairal, F. Bach,
    J. Ponce, G. Sapiro, Online dictionary learning, 2009; K. Skretting, K. Engan, Recursive least
    squares dictionary learning, 2010; B. Bahmani et al., Scalable k-means++, 2012.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> X = np.array([[3, 0, 0], [0, -1, 1], [2, 0, 0], [0, 2, -2]], np.float32)
    >>> result = fastfactor.learn_dictionary(X, 2, n_nonzero_coefs=1)
    >>> result.error < 1e-10, result.codes.nnz
    (True, 4)
    """
    X = _checks.float_array(X, "X", ndim=(2,))
    n_samples, n_features = X.shape
    if n_samples == 0 or n_features == 0:
        raise ValueError(f"X must have at least one row and one column, got shape {X.shape}")
    n_atoms = _checks.integer(n_atoms, "n_atoms", 1, 2**31 - 1)
    if n_nonzero_coefs is not None:
        n_nonzero_coefs = _checks.integer(n_nonzero_coefs, "n_nonzero_coefs", 1)
    if tol is not None:
        tol = _checks.nonnegative(tol, "tol")
    if isinstance(init, str):
        _checks.choice(init, "init", INITS)
    schedule = _plan_passes(n_samples, n_atoms, batch_size, max_iter)
    seed = _checks.seed(random_state)
    generator = np.random.default_rng(seed)
    n_threads = thread_count(n_threads)
    find_codes = coder(search, criterion, seed, n_threads)
    check_exchange(exchange, search)

    # From here on X = (the X given) / 2**exponent.
    X, exponent = _scaled(X)
    if tol is not None:
        tol = float(np.ldexp(tol, -2 * exponent))
    if isinstance(init, str):
        nearest = partial(coder(search, "correlation", seed, n_threads), n_nonzero_coefs=1)
        atoms = initial_atoms(X, n_atoms, init, generator, nearest)
    else:
        atoms = unit_rows(_given_atoms(init, (n_atoms, n_features)), generator)
    update = DictionaryUpdate(atoms.astype(_checks.result_dtype(X)), generator, n_threads)
    encoder = _Encoder(
        partial(find_codes, n_nonzero_coefs=n_nonzero_coefs, tol=tol),
        exchange=exchange,
        keeps_earlier=tol is None,
        n_threads=n_threads,
    )
    n_iter = _alternate(X, update, encoder, schedule, generator)
    codes = encoder.encode_all(X, update.atoms)
    error = _relative_error(X, codes, update.atoms, n_threads)
    if exponent:
        codes = CSR(np.ldexp(codes.data, exponent), codes.indices, codes.indptr, codes.shape)
    return DictionaryResult(codes, update.atoms, error, n_iter)


def coder(
    search: str, criterion: str, seed: int = 0, n_threads: int | None = None
) -> Callable[..., CSR]:
    """Return the pursuit of this search and criterion, a function of signals, atoms and limits.

    It gives no warning of rows that end early: a dictionary's error says how well its atoms do.
    """
    _checks.choice(search, "search", SEARCHES)
    _checks.choice(criterion, "criterion", ("correlation", "ols"))
    if search == "all":
        return _codes_of(partial(pursuit, criterion=criterion, n_threads=n_threads))
    if criterion != "correlation":
        raise ValueError(f"criterion must be 'correlation' with search='hash', got {criterion!r}")
    return _codes_of(partial(hashed_pursuit, random_state=seed, n_threads=n_threads))


def _codes_of(find: Callable[..., tuple[CSR, int]]) -> Callable[..., CSR]:
    """Return a function that leaves out the number of rows that ended early."""

    def find_codes(*args: Any, **limits: Any) -> CSR:
        return find(*args, **limits)[0]

    return find_codes


def check_exchange(exchange: Any, search: str) -> None:
    """Check that exchange is False unless the search compares signals with all atoms."""
    if _checks.boolean(exchange, "exchange") and search != "all":
        raise ValueError(f"exchange must be False with search={search!r}, got True")


# --- passes over the signals


class _Schedule(NamedTuple):
    """The sizes of batches: small in the first passes, then doubling up to all signals at once."""

    batch_size: int  # signals in a small batch
    small_passes: int  # passes with small batches
    max_iter: int


def _plan_passes(
    n_samples: int, n_atoms: int, batch_size: int | None, max_iter: int | None
) -> _Schedule:
    """Return the schedule for these settings, with defaults where they are None."""
    if batch_size is None:
        batch_size = max(round(BATCH * float(n_samples * n_atoms) ** 0.5), 1)
    batch_size = _checks.integer(batch_size, "batch_size", 1)
    small_passes = -(-min(SMALL_SIGNALS * n_atoms, MOST_SMALL_SIGNALS) // n_samples)
    small_passes = min(max(small_passes, LEAST_SMALL_PASSES), MOST_SMALL_PASSES)
    if max_iter is None:
        return _Schedule(batch_size, small_passes, small_passes + LATE_PASSES)
    max_iter = _checks.integer(max_iter, "max_iter", 0)
    small_passes = min(small_passes, max(max_iter // 2, LEAST_SMALL_PASSES))
    return _Schedule(batch_size, small_passes, max_iter)


@dataclass
class _Encoder:
    """A pursuit that finds codes, followed by exchanges of atoms if ``exchange`` is True."""

    find_codes: Callable[[Array, Array], CSR]
    exchange: bool
    keeps_earlier: bool  # whether a row may keep its code of the pass before
    n_threads: int
    earlier: CSR | None = None

    def encode_batch(self, batch: Array, atoms: Array) -> CSR:
        """Return the codes of a batch, without exchanges."""
        return self.find_codes(batch, atoms)

    def encode_all(self, X: Array, atoms: Array) -> CSR:
        """Return the codes of all signals, after exchanges if these are asked for."""
        codes = self.find_codes(X, atoms)
        if self.exchange:
            codes = improved(X, atoms, codes, self.earlier, self.n_threads)
            self.earlier = codes if self.keeps_earlier else None
        return codes


def _alternate(
    X: Array,
    update: DictionaryUpdate,
    encoder: _Encoder,
    schedule: _Schedule,
    generator: np.random.Generator,
) -> int:
    """Alternate between coding the signals and fitting the atoms; return the number of passes."""
    dtype = update.atoms.dtype
    rounding = 4 * float(np.finfo(dtype).eps) * sum(map(sum_of_squares, _row_blocks(X)))
    batch_size, last_error = schedule.batch_size, np.inf
    for n_iter in range(1, schedule.max_iter + 1):
        takes_all = batch_size >= len(X)
        if takes_all:
            signals = X.astype(dtype, copy=False)
            error = update.step(signals, encoder.encode_all(signals, update.atoms), 0.0)
        else:
            error = 0.0
            for batch in _batches(X, batch_size, generator):
                batch = batch.astype(dtype, copy=False)
                codes = encoder.encode_batch(batch, update.atoms)
                error += update.step(batch, codes, FORGETTING)
        if error <= rounding or (takes_all and error >= last_error * (1 - LEAST_GAIN)):
            return n_iter
        if takes_all:
            last_error = error
        elif n_iter >= schedule.small_passes:
            batch_size *= 2
    return schedule.max_iter


def _batches(X: Array, size: int, generator: np.random.Generator) -> Iterator[Array]:
    """Yield all signals in random order, in batches of about ``size``."""
    order = generator.permutation(len(X))
    for part in np.array_split(order, max(len(X) // size, 1)):
        yield X[part]


# --- signals and atoms


def _scaled(X: Array) -> tuple[Array, int]:
    """Check that X is finite; return X / 2**exponent and the exponent.

    The exponent is 0 unless squares of X might overflow or underflow.
    """
    largest = 0.0
    for rows in _row_blocks(X):
        _checks.finite(rows, "X")
        largest = max(largest, float(np.abs(rows).max()))
    exponent = int(np.frexp(largest)[1])
    if abs(exponent) <= PLAIN_EXPONENTS:
        return X, 0
    return np.ldexp(X.astype(_checks.result_dtype(X)), -exponent), exponent


def _given_atoms(init: Any, shape: tuple[int, int]) -> Array:
    """Check the initial atoms that the caller gave, and return them in float64."""
    given = _checks.float_array(init, "init", ndim=(2,))
    if given.shape != shape:
        raise ValueError(f"init must have shape {shape}, got {given.shape}")
    _checks.finite(given, "init")
    return given.astype(np.float64)


def _row_blocks(X: Array) -> Iterator[Array]:
    """Yield the rows of X in blocks of ``ROWS_AT_ONCE``."""
    for first in range(0, len(X), ROWS_AT_ONCE):
        yield X[first : first + ROWS_AT_ONCE]


def _relative_error(X: Array, codes: CSR, dictionary: Array, n_threads: int) -> float:
    """Return ‖X − codes · dictionary‖² / ‖X‖², or 0 if X is zero."""
    lost = total = 0.0
    approximation = spmm(codes, dictionary, n_threads=n_threads)
    for rows, close in zip(_row_blocks(X), _row_blocks(approximation), strict=True):
        rows = rows.astype(dictionary.dtype, copy=False)
        total += sum_of_squares(rows)
        lost += sum_of_squares(rows - close)
    return lost / total if total else 0.0
