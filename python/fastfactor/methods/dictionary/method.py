"""Dictionary: each block of a row is a combination of a few atoms that all blocks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ... import _checks
from ..._checks import Array
from ...kernels.packing import bits_for, pack_bits, packed_nbytes
from ...kernels.sparse import CSR
from ...learning.code_exchange import improved
from ...learning.dictionary_learning import check_exchange, coder, learn_dictionary
from ...learning.initial_atoms import INITS
from ...metrics import Covariance, Diagonal, Frobenius, exponent_of
from ..base import Method
from ..factors import FLOAT_NAMES, Factors
from ..narrow import check_kept
from ..search import Problem, Size, n_fitting
from .factors import DictionaryFactors
from .refit import refit, refit_values, whitening

MAX_ATOMS = 256  # by default, so that an index takes at most a byte
WEIGHTS_PER_ATOM_ENTRY = 8  # by default W has at least this many weights for each number in atoms
MAX_BLOCK_SIZE = 64
MIN_BLOCK_SIZE = 8
SEARCH_STEPS = 16
FAR_EXPONENT = 32
VALUE_EXPONENTS = (-6, 15)  # the range of the largest value's exponent; atoms are scaled to keep it


@dataclass(frozen=True, kw_only=True)
class Dictionary(Method):
    """Rows are cut into blocks, and a few atoms of a learned dictionary code each block.

    Parameters
    ----------
    n_nonzero_coefs : int, optional
        Atoms a block.
    block_error : float, optional
        An alternative to ``n_nonzero_coefs``: the squared error at which a block is done, divided
        by the mean squared norm of blocks. Blocks of more energy get more coefficients; storing how
        many each block has takes some bits.
    block_size : int, optional
        Columns of a block; divides the columns of W. Default: the largest divisor up to 64, or the
        whole row if that divisor is less than 8.
    n_atoms : int, optional
        Rows of the dictionary. Default: the largest power of two up to 256 for which the dictionary
        has at most an eighth as many numbers as W.
    criterion : {"correlation", "ols"}
        The rule by which atoms are chosen, as in :func:`fastfactor.omp`; ``"ols"`` has less error.
    search : {"all", "hash"}
        ``"hash"`` compares a block with a few of the atoms only, as :func:`fastfactor.hashed_omp`.
        It is meant for many thousands of atoms and needs ``criterion="correlation"``.
    exchange : bool, optional
        Whether exchanges of atoms (:func:`fastfactor.exchange_atoms`) improve the codes in the last
        passes of learning and at the end. Default: True with ``search="all"``, else False.
    init : {"k-means++", "rows", "neighbours"}
        Initial atoms, as in :func:`fastfactor.learn_dictionary`.
    max_iter : int, optional
        The most passes over the blocks, as in :func:`fastfactor.learn_dictionary`.
    value_dtype, dictionary_dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        The dtypes in which coefficients and atoms are stored. None takes W's.
    random_state : int, Generator, RandomState or None
        Seed of the learning.
    ratio, max_error : float, optional
        As in :class:`Method`, by ``n_nonzero_coefs``. Without importance and covariance
        ``block_error`` is then searched too, with the atoms found, and the better result returned.

    Raises
    ------
    TypeError, ValueError
        For settings out of range, ``search="hash"`` with ``"ols"`` and, when a matrix is
        compressed, columns that `block_size` does not divide.

    Notes
    -----
    A file holds the atoms, the coefficients, the atom of each coefficient in ⌈log₂ n_atoms⌉ bits
    and, if it varies, the number of coefficients of each block. A product multiplies every atom by
    every block of the input once, and adds these products up by :func:`fastfactor.spmm`. Atoms have
    unit norm. If the largest coefficient would be 2¹⁵ or more or below 2⁻⁷, a power of two moves
    from the coefficients to the norm of all atoms.

    To choose atoms, an importance is approximated by a factor for each block times one for each
    column of a block, and an input covariance by the mean of its diagonal blocks, which is exact if
    a block is a row. For the atoms chosen, coefficients and dictionary are then fitted in turns
    under the full importance or covariance, by conjugate gradients.

    The result has the same bits for any number of threads, except under an input covariance, whose
    products use NumPy's BLAS. ``max_error`` learns about log₂(block_size) dictionaries. ``ratio``
    learns one, or as many as ``max_error`` if some blocks need fewer coefficients than others.

    Sources: those of :func:`fastfactor.learn_dictionary`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.methods import Dictionary
    >>> rng = np.random.default_rng(0)
    >>> W = rng.choice([-1, 1, 2], (64, 1)) * rng.standard_normal((2, 16))[rng.integers(2, size=64)]
    >>> factors = Dictionary(n_nonzero_coefs=1, n_atoms=2).compress(W.astype(np.float32))
    >>> factors.nbytes, bool(factors.error(W) < 1e-6)
    (264, True)
    """

    parameter: ClassVar[str] = "n_nonzero_coefs"
    alternatives: ClassVar[tuple[str, ...]] = ("block_error",)
    metrics: ClassVar[frozenset[type]] = frozenset({Frobenius, Diagonal, Covariance})

    n_nonzero_coefs: int | None = None
    block_error: float | None = None
    block_size: int | None = None
    n_atoms: int | None = None
    criterion: str = "ols"
    search: str = "all"
    exchange: bool | None = None
    init: str = "k-means++"
    max_iter: int | None = None
    value_dtype: str | None = "float16"
    dictionary_dtype: str | None = None
    random_state: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_nonzero_coefs is not None:
            _checks.integer(self.n_nonzero_coefs, "n_nonzero_coefs", 1)
        if self.block_error is not None:
            _checks.nonnegative(self.block_error, "block_error", finite=True)
        if self.block_size is not None:
            _checks.integer(self.block_size, "block_size", 1)
        if self.n_atoms is not None:
            _checks.integer(self.n_atoms, "n_atoms", 1, 1 << 24)
        coder(self.search, self.criterion)
        if self.exchange is not None:
            check_exchange(self.exchange, self.search)
        _checks.choice(self.init, "init", INITS)
        if self.max_iter is not None:
            _checks.integer(self.max_iter, "max_iter", 0)
        for name in ("value_dtype", "dictionary_dtype"):
            if getattr(self, name) is not None:
                _checks.choice(getattr(self, name), name, FLOAT_NAMES)

    def _compress(self, problem: Problem) -> DictionaryFactors:
        block_size, exponent = self._block_size(problem.W), _far_exponent(problem.W)
        if exponent:
            problem = replace(problem, W=np.ldexp(problem.W, -exponent))
        scale, root, inverse = whitening(problem, block_size)
        signals = np.ascontiguousarray(problem.W).reshape(-1, block_size)
        plain = isinstance(problem.metric, Frobenius)
        if not plain:
            signals = scale * (signals.astype(np.float64) @ root)
        limits = self._limits(signals)
        learned = learn_dictionary(
            signals,
            self._count_atoms(problem.W, block_size),
            init=self.init,
            max_iter=self.max_iter,
            criterion=self.criterion,
            search=self.search,
            exchange=self._exchanges(),
            random_state=self.random_state,
            n_threads=problem.n_threads,
            **limits,
        )
        codes, dictionary = learned.codes, learned.dictionary
        if plain:
            # The coding fits values to the rounded atoms. Fitting values and atoms in turns after
            # it would lower the error by 0.3 % on LeNet's first layer and 0.1 % on its second,
            # which is not worth the time.
            dictionary = self._rounded(dictionary, problem.W, "dictionary_dtype")
            earlier = codes if self.block_error is None else None
            codes = self._coded(signals, dictionary, limits, earlier, problem.n_threads)
        else:
            counts = np.diff(codes.indptr)
            values = codes.data / np.repeat(scale[:, 0], counts)
            codes = CSR(values, codes.indices, codes.indptr, codes.shape)
            codes, dictionary = refit(problem, codes, dictionary @ inverse)
            lengths = np.sqrt(np.einsum("ij,ij->i", dictionary, dictionary))
            lengths[lengths == 0] = 1
            dictionary = self._rounded(dictionary / lengths[:, None], problem.W, "dictionary_dtype")
            values = codes.data * lengths[codes.indices]
            codes = CSR(values, codes.indices, codes.indptr, codes.shape)
            codes = refit_values(problem, codes, dictionary.astype(np.float64))
        return self._stored(problem.W, codes, dictionary, exponent)

    def _levels(self, problem: Problem) -> Sequence[int]:
        if problem.W.size == 0:
            return range(0)
        block_size = self._block_size(problem.W)
        return range(1, min(block_size, self._count_atoms(problem.W, block_size)) + 1)

    def _least_nbytes(self, problem: Problem) -> int:
        # Every block has a value, or the number of values of every block is stored.
        W = problem.W
        n = W.size // self._block_size(W)
        value = self._dtype("value_dtype", W).itemsize
        return self._dictionary_nbytes(W) + min(n * value, packed_nbytes(n, 1) + value)

    def _size(self, problem: Problem) -> Size | None:
        block_size = self._block_size(problem.W)
        if self.n_nonzero_coefs is None:
            return None
        n = problem.W.size // block_size
        # If some block needs fewer values, the number of values of every block is stored.
        counts = packed_nbytes(n, self._max_values(problem.W).bit_length())
        return Size(self._even_nbytes(problem.W) + counts, exact=False)

    def _max_values(self, W: Array) -> int:
        """Return the most values that a block may have."""
        block_size = self._block_size(W)
        return min(self.n_nonzero_coefs or block_size, self._count_atoms(W, block_size), block_size)

    def _even_nbytes(self, W: Array) -> int:
        """Return the bytes of factors whose blocks all have as many values as they may."""
        block_size = self._block_size(W)
        n_atoms, count = self._count_atoms(W, block_size), self._max_values(W)
        n = W.size // block_size
        indices = packed_nbytes(n * count, bits_for(n_atoms))
        values = n * count * self._dtype("value_dtype", W).itemsize
        return self._dictionary_nbytes(W) + values + indices

    def _dictionary_nbytes(self, W: Array) -> int:
        block_size = self._block_size(W)
        numbers = self._count_atoms(W, block_size) * block_size
        return numbers * self._dtype("dictionary_dtype", W).itemsize

    def _dtype(self, setting: str, W: Array) -> np.dtype[Any]:
        """Return the dtype that a setting names, or W's."""
        name = getattr(self, setting)
        return W.dtype if name is None else _checks.dtype_named(name)

    def _search(self, problem: Problem) -> Factors:
        goal = self._goal(problem)
        best: Factors | None = self._largest_even(problem) if goal.is_size else None
        if best is None:
            best = super()._search(problem)
        assert isinstance(best, DictionaryFactors)
        if isinstance(problem.metric, Frobenius):
            return self._with_block_error(problem, best)
        plain = self._largest_even(problem.plain) if goal.is_size else None
        if plain is None:
            return best
        return min(best, self._with_block_error(problem.plain, plain), key=problem.error_of)

    def _with_block_error(self, problem: Problem, best: DictionaryFactors) -> DictionaryFactors:
        """Return the best factors with these atoms that some error of all blocks gives.

        The logarithm of the error at which a block is done is found by bisection.
        """
        goal, error = self._goal(problem), problem.error_of(best)
        if not np.isfinite(error):
            return best
        exponent = _far_exponent(problem.W)
        W = np.ldexp(problem.W, -exponent) if exponent else np.ascontiguousarray(problem.W)
        signals = W.reshape(-1, self._block_size(W))
        atoms = best.dictionary
        if exponent:
            atoms = np.ldexp(atoms.astype(np.float64), -exponent_of(atoms))
        squares = max(best.error(problem.W), 1e-12)  # what a block's error counts
        low, high = np.log(squares / 16), np.log(squares * 4)
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            settings = replace(self, block_error=float(np.exp(middle)), ratio=None, max_error=None)
            limits = settings._limits(signals)
            codes = self._coded(signals, atoms, limits, None, problem.n_threads)
            other = settings._stored(problem.W, codes, atoms, exponent)
            lost = problem.error_of(other)
            if goal.is_size:
                fits = goal.allows(other.nbytes)
                better = lost < error
            else:
                fits = goal.allows(lost)
                better = other.nbytes < best.nbytes
            # The larger the error of a block, the smaller are the factors.
            low, high = (low, middle) if fits == goal.is_size else (middle, high)
            if fits and better:
                best, error = other, lost
        return best

    def _largest_even(self, problem: Problem) -> DictionaryFactors | None:
        """Return the factors of the largest level that fits if every block has as many values.

        This is the usual case, in which sizes are known without compressing. Return None if no
        level fits or if some block has fewer values.
        """
        levels = self._checked_levels(problem)
        fitting = n_fitting(
            levels, lambda level: self._at(level)._even_nbytes(problem.W), self._goal(problem)
        )
        if fitting == 0:
            return None
        factors = self._at(levels[fitting - 1])._compress(problem)
        return factors if factors.count_bits == 0 else None

    def _exchanges(self) -> bool:
        return self.search == "all" if self.exchange is None else self.exchange

    def _coded(
        self,
        signals: Array,
        dictionary: Array,
        limits: Mapping[str, Any],
        earlier: CSR | None,
        n_threads: int | None,
    ) -> CSR:
        """Return codes over a dictionary.

        If exchanges are on, they also start from ``earlier``, the codes of a similar dictionary.
        """
        code = coder(self.search, self.criterion, self.random_state, n_threads)
        codes = code(signals, dictionary, **limits)
        return (
            improved(signals, dictionary, codes, earlier, n_threads) if self._exchanges() else codes
        )

    def _block_size(self, W: Array) -> int:
        """Return the columns of a block, or refuse those that do not divide W's."""
        columns = W.shape[1]
        if W.size == 0:
            raise ValueError(f"W must not be empty for Dictionary, got shape {W.shape}")
        if self.block_size is None:
            divisors = (d for d in range(min(columns, MAX_BLOCK_SIZE), 0, -1) if columns % d == 0)
            longest = next(divisors)
            return longest if longest >= MIN_BLOCK_SIZE else columns
        if columns % self.block_size:
            raise ValueError(
                f"block_size must divide the columns of W, {columns}, got {self.block_size}"
            )
        return self.block_size

    def _count_atoms(self, W: Array, block_size: int) -> int:
        if self.n_atoms is not None:
            return self.n_atoms
        affordable = max(W.size // (WEIGHTS_PER_ATOM_ENTRY * block_size), 1)
        return min(MAX_ATOMS, 1 << (affordable.bit_length() - 1))

    def _limits(self, signals: Array) -> dict[str, Any]:
        if self.block_error is None:
            return {"n_nonzero_coefs": self.n_nonzero_coefs}
        energy = np.einsum("ij,ij->", signals, signals, dtype=np.float64) / len(signals)
        # If all signals are zero, so is the tolerance, which every block meets at once.
        return {"tol": self.block_error * float(energy)}

    def _scaled(self, W: Array, codes: CSR, dictionary: Array, exponent: int) -> tuple[CSR, Array]:
        """Return codes and atoms of 2**exponent times their product.

        The values are in the range of every dtype; a power of two moves from them to the atoms.
        """
        largest = float(np.abs(codes.data).max(initial=0))
        of_values = int(np.frexp(largest)[1])
        low, high = VALUE_EXPONENTS
        up = min(max(of_values + exponent, low), high) - of_values
        if largest == 0 or up == exponent == 0:
            return codes, dictionary
        values = np.ldexp(codes.data, up)
        codes = CSR(values, codes.indices, codes.indptr, codes.shape)
        with np.errstate(over="ignore"):
            longer = np.ldexp(dictionary.astype(np.float64), exponent - up)
        return codes, self._rounded(longer, W, "dictionary_dtype")

    def _rounded(self, array: Array, W: Array, setting: str) -> Array:
        """Return the array in the dtype of a setting, or refuse values that it cannot hold."""
        dtype = self._dtype(setting, W)
        with np.errstate(over="ignore"):
            rounded = array.astype(dtype)
        if not np.isfinite(rounded).all():
            raise ValueError(
                f"{setting} must hold values up to {np.abs(array).max():.3g}, got {dtype}"
            )
        check_kept(array, dtype, "W", "values" if setting == "value_dtype" else "atoms")
        return rounded

    def _stored(self, W: Array, codes: CSR, dictionary: Array, exponent: int) -> DictionaryFactors:
        """Return the factors that hold 2**exponent times the product of these codes and atoms."""
        codes, dictionary = self._scaled(W, codes, dictionary, exponent)
        counts = np.diff(codes.indptr)
        n_atoms = len(dictionary)
        even = int(counts.min()) == int(counts.max())
        count_bits = 0 if even else int(counts.max()).bit_length()
        return DictionaryFactors(
            dictionary=dictionary,
            values=self._rounded(codes.data, W, "value_dtype"),
            indices=pack_bits(codes.indices, bits_for(n_atoms)),
            counts=pack_bits(counts, count_bits) if count_bits else np.zeros(0, np.uint8),
            count_bits=count_bits,
            count=int(counts[0]) if even else 0,
            shape=(W.shape[0], W.shape[1]),
            dtype=W.dtype,
        )


def _far_exponent(W: Array) -> int:
    """Return the exponent by which to scale W so that squares are in range; mostly 0."""
    exponent = exponent_of(W)
    return exponent if abs(exponent) > FAR_EXPONENT else 0
