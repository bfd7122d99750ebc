"""Dictionary learning: atoms of which few combine to each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _checks
from .._checks import Array
from .._records import short_repr
from ..kernels.runtime import thread_count
from ..kernels.sparse import CSR, spmm
from ..kernels.sparse_coding import hashed_omp, omp
from .code_exchange import improved
from .code_products import ROWS_AT_ONCE
from .dictionary_update import DictionaryUpdate, sum_of_squares
from .initial_atoms import INITS, initial_atoms, unit_rows

SEARCHES = ("all", "hash")
# A batch must be small: its chance noise frees atoms from poor minima. And it must be large enough
# to tell atoms from noise. Best was, for the signals there were per atom, as the sum of batch /
# (1 - FORGETTING): 7 of 15, 10 of 31, 14 of 62, 20 of 125, 40 of 500, on parts of wordllama's table
# (6 shapes of batch each); two layers of a LeNet-300-100, two of a ResNet-20 and combinations of
# random atoms agree. Hence the root. With 0.6 fewer refits do than with 0.8: of bench/omp.py's
# workload a, two passes leave 0.0019 in 0.44 s instead of 0.0022 in 0.61.
BATCH = 0.6  # times the root of n_samples · n_atoms
FORGETTING = 0.6  # what of earlier batches counts in the next refit
# With few signals a pass is cheap, and many are needed: so many signals an atom. Of LeNet's first
# layer 512, 1024, 2048 and 4096 leave 0.0666, 0.0663, 0.0656 and 0.0654 at 3 nonzeros, in 0.3, 0.5,
# 1.0 and 1.9 s; at 6, 0.0284, 0.0275, 0.0270 and 0.0266. Of its second, at 3: 0.228 to 0.220.
SMALL_SIGNALS = 2048
MOST_SMALL_SIGNALS = 1 << 21  # in all: else many thousand atoms would take hours
LEAST_SMALL_PASSES, MOST_SMALL_PASSES = 2, 200
LATE_PASSES = 20  # then batches double from pass to pass, up to all signals
LEAST_GAIN = 1e-3  # of the error, for one more pass over all signals at once
PLAIN_EXPONENTS = 30  # of two: what is larger or smaller is scaled, so that its squares are numbers


class DictionaryResult(NamedTuple):
    """What :func:`learn_dictionary` gives back: ``X ≈ codes @ dictionary``.

    Attributes
    ----------
    codes : CSR of shape (n_samples, n_atoms)
        Coefficients, columns ascending in each row: least squares on the atoms chosen.
    dictionary : array of shape (n_atoms, n_features)
        Atoms of unit norm, float64 where X is, else float32.
    error : float
        ‖X − codes · dictionary‖² / ‖X‖², 0 where X is zero.
    n_iter : int
        Passes over the signals, the last coding not counted.
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
    """Find atoms of which few combine to each row of ``X``, and the combinations.

    Alternates coding by :func:`omp` with the dictionary of least squared error for the codes so
    far. A step takes a batch of the signals, and codes of earlier batches count less and less;
    batches grow from pass to pass until a step takes all. Atoms that hardly any code
    uses, and second ones of two that are alike, give way to the signals that are coded worst.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        float16, bfloat16, float32 or float64, finite. Read a batch at a time, never copied whole
        while there are several batches, unless the largest is beyond 2³⁰ or below 2⁻³¹.
    n_atoms : int
        Rows of the dictionary. There may be more than samples.
    n_nonzero_coefs : int, optional
        The most atoms that a row may use, as in :func:`omp`.
    tol : float, optional
        The squared error at which a row is done, in the units of X², as in :func:`omp`.
    criterion : {"correlation", "ols"}
        How atoms are chosen, as in :func:`omp`.
    search : {"all", "hash"}
        ``"hash"`` codes by :func:`hashed_omp`, which looks at few of the atoms: for dictionaries of
        some 8,000 atoms and more, with ``criterion="correlation"``.
    exchange : bool
        Whether codes are improved by :func:`exchange_atoms` where a pass takes all signals at once,
        and at the end: with as many atoms a row, less error. Unless ``tol`` is given, a row's code
        of the pass before goes on where it leaves less than a new one. Such passes take three to
        six times as long. With ``search="hash"`` it would look at all atoms, and is refused.
    init : {"k-means++", "rows", "neighbours"} or array of shape (n_atoms, n_features)
        Initial atoms: ``"k-means++"`` draws signals in rounds, with chances as the squared error
        that one of the atoms drawn before leaves; ``"rows"`` draws signals that are not zero, all
        alike; ``"neighbours"`` draws four times as many and takes those that, as the nearest
        neighbour of other signals (in angle), stand for the most of their energy.
    batch_size : int, optional
        Signals a step in the first passes, then twice as many in each. Default:
        0.6 · √(n_samples · n_atoms). With n_samples or more every step takes all (method of optimal
        directions).
    max_iter : int, optional
        The most passes over the signals; 0 codes by the initial atoms. Default: passes with small
        batches until 2048 signals were coded for each atom, or 2 million in all, 2 to 200, and
        up to 20 after them, fewer where nothing is left to gain.
        Where it is given, small batches take at most half of it.
    random_state : int, Generator, RandomState or None
        Seed of the initial atoms and of the order of signals. None: fresh at each call.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    DictionaryResult
        With fields codes, dictionary, error and n_iter. The dictionary's last refit is followed by
        one more coding, so that codes are best for the dictionary given.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or limit, and for NaN or infinity.

    Notes
    -----
    A pass codes each signal once (see :func:`omp` for what that costs), sums the products of its
    k coefficients, k² / 2 additions, and solves for the atoms once a batch: some products of a
    matrix of n_atoms². Beside operands and result, memory is n_atoms² numbers and a batch. Of more
    than 4096 atoms the solver multiplies by the codes instead, and memory is some batches. A pass
    over all signals that gains less than 0.1 % is the last.

    Sums are float64. They and the solver (conjugate gradients, from the atoms before) run in this
    package's own loops, so that results have the same bits for any number of threads.

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
    pursuit = coder(search, criterion, seed, n_threads)
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
        partial(pursuit, n_nonzero_coefs=n_nonzero_coefs, tol=tol),
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
    """Return the pursuit that is asked for, a function of signals, atoms and limits."""
    _checks.choice(search, "search", SEARCHES)
    _checks.choice(criterion, "criterion", ("correlation", "ols"))
    if search == "all":
        return partial(omp, criterion=criterion, n_threads=n_threads)
    if criterion != "correlation":
        raise ValueError(f"criterion must be 'correlation' with search='hash', got {criterion!r}")
    return partial(hashed_omp, random_state=seed, n_threads=n_threads)


def check_exchange(exchange: Any, search: str) -> None:
    """Check that codes are exchanged only where pursuit looks at all atoms anyway."""
    if _checks.boolean(exchange, "exchange") and search != "all":
        raise ValueError(f"exchange must be False with search={search!r}, got True")


# --- passes over the signals


class _Schedule(NamedTuple):
    """How passes over the signals go: small batches, then larger ones, then all signals at once."""

    batch_size: int  # of the small batches
    small_passes: int  # passes with them
    max_iter: int


def _plan_passes(
    n_samples: int, n_atoms: int, batch_size: int | None, max_iter: int | None
) -> _Schedule:
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
    """Finds codes by pursuit and, where that is asked for, improves them by exchanges."""

    pursuit: Callable[[Array, Array], CSR]
    exchange: bool
    keeps_earlier: bool  # whether exchanges may also go on from the codes of the pass before
    n_threads: int
    earlier: CSR | None = None

    def encode_batch(self, batch: Array, atoms: Array) -> CSR:
        return self.pursuit(batch, atoms)

    def encode_all(self, X: Array, atoms: Array) -> CSR:
        codes = self.pursuit(X, atoms)
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
    """Code the signals and fit the atoms in turn, and return the number of passes."""
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
    """Return X / 2**exponent and the exponent, 0 unless squares of X might leave the range.

    Checks that X is finite, some rows at a time.
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
    """Return the initial atoms that the caller gave, checked, in float64."""
    given = _checks.float_array(init, "init", ndim=(2,))
    if given.shape != shape:
        raise ValueError(f"init must have shape {shape}, got {given.shape}")
    _checks.finite(given, "init")
    return given.astype(np.float64)


def _row_blocks(X: Array) -> Iterator[Array]:
    for first in range(0, len(X), ROWS_AT_ONCE):
        yield X[first : first + ROWS_AT_ONCE]


def _relative_error(X: Array, codes: CSR, dictionary: Array, n_threads: int) -> float:
    """‖X − codes · dictionary‖² / ‖X‖²."""
    lost = total = 0.0
    approximation = spmm(codes, dictionary, n_threads=n_threads)
    for rows, close in zip(_row_blocks(X), _row_blocks(approximation), strict=True):
        rows = rows.astype(dictionary.dtype, copy=False)
        total += sum_of_squares(rows)
        lost += sum_of_squares(rows - close)
    return lost / total if total else 0.0
