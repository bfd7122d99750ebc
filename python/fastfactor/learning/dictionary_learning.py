"""Dictionary learning: atoms of which few combine to each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from .code_products import MOST_DENSE, ROWS_AT_ONCE, Codes, Matrix, full

INITS = ("k-means++", "rows", "neighbours")
SEARCHES = ("all", "hash")
# A batch must be small: its chance noise frees atoms from poor minima. And it must be large enough
# to tell atoms from noise. Best was, for the signals there were per atom, as the sum of batch /
# (1 - MEMORY): 7 of 15, 10 of 31, 14 of 62, 20 of 125, 40 of 500, on parts of wordllama's table (6
# shapes of batch each); two layers of a LeNet-300-100, two of a ResNet-20 and combinations of
# random atoms agree. Hence the root. With 0.6 fewer refits do than with 0.8: of bench/omp.py's
# workload a, two passes leave 0.0019 in 0.44 s instead of 0.0022 in 0.61.
BATCH = 0.6  # times the root of n_samples · n_atoms
MEMORY = 0.6  # what of earlier batches counts in the next refit
# With few signals a pass is cheap, and many are needed: so many signals an atom. Of LeNet's first
# layer 512, 1024, 2048 and 4096 leave 0.0666, 0.0663, 0.0656 and 0.0654 at 3 nonzeros, in 0.3, 0.5,
# 1.0 and 1.9 s; at 6, 0.0284, 0.0275, 0.0270 and 0.0266. Of its second, at 3: 0.228 to 0.220.
SMALL_SIGNALS = 2048
MOST_SMALL_SIGNALS = 1 << 21  # in all: else many thousand atoms would take hours
LEAST_SMALL_PASSES, MOST_SMALL_PASSES = 2, 200
LATE_PASSES = 20  # then batches double from pass to pass, up to all signals
LEAST_GAIN = 1e-3  # of the error, for one more pass over all signals at once
SAMPLE_PER_ATOM = 32  # signals that initial atoms are drawn from
ROUNDS = 4  # in which they are drawn
SAME = 0.98  # |cosine| of two atoms that are one
RARE = 0.05  # of the mean use of atoms: what is used less is replaced
SOLVER_STEPS = 40
SOLVER_GAIN = 1e-10  # of the squared gradient, at which the refit to all signals is done
BATCH_GAIN = 1e-4  # the same for a batch, whose own chance is more; 1e-3 loses on workload a
RIDGE = 1e-7  # of the mean diagonal, for atoms that no code uses
ATOMS_AT_ONCE = 512  # compared with all others
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
    if batch_size is None:
        batch_size = max(round(BATCH * float(n_samples * n_atoms) ** 0.5), 1)
    batch_size = _checks.integer(batch_size, "batch_size", 1)
    small_passes = -(-min(SMALL_SIGNALS * n_atoms, MOST_SMALL_SIGNALS) // n_samples)
    small_passes = min(max(small_passes, LEAST_SMALL_PASSES), MOST_SMALL_PASSES)
    if max_iter is None:
        max_iter = small_passes + LATE_PASSES
    else:
        max_iter = _checks.integer(max_iter, "max_iter", 0)
        small_passes = min(small_passes, max(max_iter // 2, LEAST_SMALL_PASSES))
    seed = _checks.seed(random_state)
    generator = np.random.default_rng(seed)
    n_threads = thread_count(n_threads)
    code = coder(search, criterion, seed, n_threads)
    check_exchange(exchange, search)
    dtype = _checks.result_dtype(X)
    largest = 0.0
    for rows in _blocks(X):
        _checks.finite(rows, "X")
        largest = max(largest, float(np.abs(rows).max()))
    exponent = int(np.frexp(largest)[1])
    if abs(exponent) <= PLAIN_EXPONENTS:
        exponent = 0
    else:
        X = np.ldexp(X.astype(dtype), -exponent)
        if tol is not None:
            tol = float(np.ldexp(tol, -2 * exponent))
    limits: dict[str, Any] = {"n_nonzero_coefs": n_nonzero_coefs, "tol": tol}
    if isinstance(init, str):
        _checks.choice(init, "init", INITS)
        nearest = coder(search, "correlation", seed, n_threads)
        atoms = _initial(X, n_atoms, init, generator, nearest).astype(dtype)
    else:
        given = _checks.float_array(init, "init", ndim=(2,))
        if given.shape != (n_atoms, n_features):
            raise ValueError(f"init must have shape {(n_atoms, n_features)}, got {given.shape}")
        _checks.finite(given, "init")
        atoms = _unit(given.astype(np.float64), generator).astype(dtype)
    learner = _Learner(atoms, generator, n_threads)
    carried: CSR | None = None
    n_iter, size, last = 0, batch_size, np.inf
    nothing = 4 * float(np.finfo(dtype).eps) * sum(map(_squares, _blocks(X)))  # but rounding
    while n_iter < max_iter:
        squared = 0.0
        for batch in _batches(X, size, generator, dtype):
            codes = code(batch, learner.atoms, **limits)
            if exchange and size >= n_samples:
                codes = improved(batch, learner.atoms, codes, carried, n_threads)
                carried = codes if tol is None else None
            squared += learner.step(batch, codes, MEMORY if size < n_samples else 0.0)
        n_iter += 1
        if squared <= nothing:
            break
        if size >= n_samples:
            if squared >= last * (1 - LEAST_GAIN):
                break
            last = squared
        elif n_iter >= small_passes:
            size *= 2
    codes = code(X, learner.atoms, **limits)
    if exchange:
        codes = improved(X, learner.atoms, codes, carried, n_threads)
    error = _error(X, codes, learner.atoms, n_threads)
    if exponent:
        codes = CSR(np.ldexp(codes.data, exponent), codes.indices, codes.indptr, codes.shape)
    return DictionaryResult(codes, learner.atoms, error, n_iter)


def coder(
    search: str, criterion: str, seed: int = 0, n_threads: int | None = None
) -> Callable[..., CSR]:
    """The function of signals, atoms and limits that codes as is wanted."""
    _checks.choice(search, "search", SEARCHES)
    _checks.choice(criterion, "criterion", ("correlation", "ols"))
    if search == "all":
        return partial(omp, criterion=criterion, n_threads=n_threads)
    if criterion != "correlation":
        raise ValueError(f"criterion must be 'correlation' with search='hash', got {criterion!r}")
    return partial(hashed_omp, random_state=seed, n_threads=n_threads)


def check_exchange(exchange: Any, search: str) -> None:
    """That codes are exchanged only where all atoms are looked at anyway."""
    if _checks.boolean(exchange, "exchange") and search != "all":
        raise ValueError(f"exchange must be False with search={search!r}, got True")


class _Learner:
    """Atoms, and the sums over codes that they were fitted to: CᵀC and CᵀX, fading."""

    def __init__(self, atoms: Array, generator: np.random.Generator, n_threads: int) -> None:
        n_atoms, n_features = atoms.shape
        self.atoms, self.generator, self.n_threads = atoms, generator, n_threads
        self.normal = Matrix(n_atoms) if n_atoms <= MOST_DENSE else Codes(n_atoms)
        self.target = np.zeros((n_atoms, n_features))
        self.used = np.zeros(n_atoms)

    def step(self, batch: Array, codes: CSR, memory: float) -> float:
        """Take a batch and its codes in, refit; the squared error that the codes had."""
        n_atoms = len(self.atoms)
        of_atoms = codes.T
        target = spmm(of_atoms, batch, n_threads=self.n_threads).astype(np.float64)
        # ‖x − c D‖² = ‖x‖² − c D xᵀ where c is least squares.
        squared = _squares(batch) - float(np.einsum("ij,ij->", target, self.atoms))
        self.normal.add(codes, of_atoms, memory)
        self.target = memory * self.target + target
        self.used = memory * self.used + np.diff(of_atoms.indptr)
        gain = BATCH_GAIN if memory else SOLVER_GAIN
        fitted = _solve(self.normal, self.target, self.atoms, gain, self.n_threads)
        lengths = np.sqrt(np.einsum("ij,ij->i", fitted, fitted))
        held = lengths > 0
        lengths[~held] = 1
        unit = (fitted / lengths[:, None]).astype(self.atoms.dtype)
        # Longer atoms have shorter codes: the sums are for atoms of unit norm from here on.
        self.normal.rescale(lengths)
        self.target *= lengths[:, None]
        second = _repeated(unit, self.n_threads)
        bad = np.flatnonzero(~held | second | (self.used < RARE * self.used.mean()))
        if len(bad):
            left = batch - spmm(codes, fitted.astype(batch.dtype), n_threads=self.n_threads)
            errors = np.einsum("ij,ij->i", left, left, dtype=np.float64)
            worst = np.argsort(-errors, kind="stable")[: len(bad)]
            worst = worst[errors[worst] > 1e-10 * max(squared, 0) / len(batch)]
            worst = worst[errors[worst] > 0]
            bad = bad[: len(worst)]
            fresh = left[worst].astype(np.float64)
            unit[bad] = _unit(fresh, self.generator)
            self.normal.forget(bad)
            self.target[bad] = 0
            self.used[bad] = self.used.sum() / n_atoms
        unit[~held] = np.where(
            unit[~held].any(axis=1, keepdims=True), unit[~held], self.atoms[~held]
        )
        self.atoms = unit
        return max(squared, 0.0)


def _repeated(unit: Array, n_threads: int) -> Array:
    """Which atoms are like one before them."""
    repeated = np.zeros(len(unit), np.bool_)
    for first in range(0, len(unit), ATOMS_AT_ONCE):
        rows = unit[first : first + ATOMS_AT_ONCE]
        at = slice(first, first + len(rows))
        cosines = spmm(full(rows), unit[: at.stop].T, n_threads=n_threads)
        cosines[:, at] = np.tril(cosines[:, at], -1)
        repeated[at] = (cosines.max(axis=1) > SAME) | (cosines.min(axis=1) < -SAME)
    return repeated


def _solve(
    normal: Matrix | Codes, target: Array, start: Array, gain: float, n_threads: int
) -> Array:
    """normal · D = target by conjugate gradients, each column its own, scaled by the diagonal.

    From atoms that nearly solve it a few steps do, and every step lowers the squared error. LAPACK
    would be as fast, but its idle threads and ours, waiting for work, hold each other up: steps
    of 2 ms took 8.
    """
    diagonal = normal.diagonal()
    ridge = RIDGE * max(float(diagonal.mean()), 1e-300)
    times = normal.operator(ridge, n_threads)
    scale = 1 / (diagonal + ridge)
    found = start.astype(np.float64)
    rest = target + ridge * found - times(found)
    scaled = scale[:, None] * rest
    direction = scaled.copy()
    now = np.einsum("ij,ij->j", rest, scaled)
    enough = gain * np.einsum("ij,i,ij->j", target, scale, target)
    for _ in range(SOLVER_STEPS):
        if (now <= enough).all():
            break
        image = times(direction)
        curve = np.einsum("ij,ij->j", direction, image)
        step = np.divide(now, curve, out=np.zeros_like(now), where=curve > 0)
        found += step * direction
        rest -= step * image
        scaled = scale[:, None] * rest
        new = np.einsum("ij,ij->j", rest, scaled)
        direction *= np.divide(new, now, out=np.zeros_like(now), where=now > 0)
        direction += scaled
        now = new
    return found


def _initial(
    X: Array, n_atoms: int, init: str, generator: np.random.Generator, code: Callable[..., CSR]
) -> Array:
    """Unit atoms from signals, float64."""
    n = min(len(X), SAMPLE_PER_ATOM * n_atoms)
    chosen = np.arange(len(X)) if n == len(X) else generator.choice(len(X), n, replace=False)
    wide: Array = X[np.sort(chosen)].astype(_checks.result_dtype(X))
    energy = np.einsum("ij,ij->i", wide, wide, dtype=np.float64)
    sample, energy = wide[energy > 0], energy[energy > 0]
    if init == "k-means++":
        picked = _drawn_by_error(sample, energy, n_atoms, generator, code)
    else:
        n_drawn = min(n_atoms * (4 if init == "neighbours" else 1), len(sample))
        picked = generator.permutation(len(sample))[:n_drawn]
        if init == "neighbours" and n_drawn > n_atoms:
            candidates = sample[picked] / np.sqrt(energy[picked, None])
            codes = code(sample, candidates.astype(sample.dtype), n_nonzero_coefs=1)
            stands_for = np.bincount(codes.indices, codes.data.astype(np.float64) ** 2, n_drawn)
            picked = picked[np.argsort(-stands_for, kind="stable")[:n_atoms]]
    atoms = np.zeros((n_atoms, X.shape[1]))
    atoms[: len(picked)] = sample[picked]
    return _unit(atoms, generator)


def _drawn_by_error(
    sample: Array,
    energy: Array,
    n_atoms: int,
    generator: np.random.Generator,
    code: Callable[..., CSR],
) -> Array:
    """Numbers of signals, in rounds; chances are what one atom drawn before leaves of each."""
    picked = np.zeros(0, np.int64)
    left = energy.copy()
    for round_ in range(ROUNDS):
        share: int = n_atoms * (round_ + 1) // ROUNDS - len(picked)
        left[picked] = 0
        possible = int(np.count_nonzero(left > 1e-10 * energy))
        left[left <= 1e-10 * energy] = 0
        if min(share, possible) == 0:
            continue
        chances = left / left.sum()
        fresh = generator.choice(len(sample), min(share, possible), replace=False, p=chances)
        picked = np.concatenate([picked, fresh])
        if round_ < ROUNDS - 1:
            atoms = sample[picked] / np.sqrt(energy[picked, None])
            codes = code(sample, atoms.astype(sample.dtype), n_nonzero_coefs=1)
            row_of = np.repeat(np.arange(len(sample)), np.diff(codes.indptr))
            covered = np.bincount(row_of, codes.data.astype(np.float64) ** 2, len(sample))
            left = np.maximum(energy - covered, 0)
    return picked


def _unit(atoms: Array, generator: np.random.Generator) -> Array:
    """Rows of norm one; in place of zeros a random direction."""
    atoms = atoms.copy()
    empty = ~atoms.any(axis=1)
    atoms[empty] = generator.standard_normal((int(empty.sum()), atoms.shape[1]))
    atoms /= np.abs(atoms).max(axis=1, keepdims=True)
    unit: Array = atoms / np.sqrt(np.einsum("ij,ij->i", atoms, atoms))[:, None]
    return unit


def _batches(
    X: Array, size: int, generator: np.random.Generator, dtype: type[np.floating[Any]]
) -> Iterator[Array]:
    """All signals in random order, in batches of about ``size``, widened."""
    if size >= len(X):
        yield X.astype(dtype, copy=False)
        return
    order = generator.permutation(len(X))
    for part in np.array_split(order, max(len(X) // size, 1)):
        yield X[part].astype(dtype, copy=False)


def _blocks(X: Array) -> Iterator[Array]:
    for first in range(0, len(X), ROWS_AT_ONCE):
        yield X[first : first + ROWS_AT_ONCE]


def _squares(X: Array) -> float:
    return float(np.einsum("ij,ij->", X, X, dtype=np.float64))


def _error(X: Array, codes: CSR, dictionary: Array, n_threads: int) -> float:
    """‖X − codes · dictionary‖² / ‖X‖²."""
    lost = total = 0.0
    approximation = spmm(codes, dictionary, n_threads=n_threads)
    for first in range(0, len(X), ROWS_AT_ONCE):
        rows = X[first : first + ROWS_AT_ONCE].astype(dictionary.dtype, copy=False)
        total += _squares(rows)
        lost += _squares(rows - approximation[first : first + len(rows)])
    return lost / total if total else 0.0
