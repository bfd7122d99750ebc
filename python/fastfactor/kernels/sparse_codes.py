"""Pruned matrices with values from a codebook, in the form that Deep Compression stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import refuse_array
from ..errors import CorruptDataError
from ._output import as_batch, output
from .gaps import MAX_SIZE, gap_decode, gap_encode
from .packing import code_bits_for
from .runtime import thread_count
from .sparse import CSR

NARROW_ENTRIES = 16  # of the largest codebook whose codes products hold in four bits
WIDE_ENTRIES = 256


@dataclass(frozen=True, eq=False, repr=False)
class SparseCodes:
    """A pruned matrix with shared weights: each entry has a gap before it and a code for its value.

    This is the stored form of Deep Compression after Huffman decoding. Entries follow each other
    through the matrix in C order. Entry ``i`` lies ``gaps[i] + 1`` places after entry ``i - 1``
    (the first one ``gaps[0]`` places after the beginning) and has the value ``codebook[codes[i]]``.
    Products skip entries of value zero, such as the fillers that split gaps too wide for
    ``gap_bits``.

    Parameters
    ----------
    codes : array of shape (n_entries,)
        uint8, each below the number of values in the codebook.
    gaps : array of shape (n_entries,)
        uint8 or uint16, as in :class:`GapCodes`.
    gap_bits : int
        Bits of a gap: 1 to 8 for uint8, to 16 for uint16.
    codebook : array of shape (K,) or (K, 1)
        The shared values, 1 to 256 of them, finite: float16, bfloat16 or float32.
    shape : (int, int)
        Shape of the matrix, (out_features, in_features).

    Raises
    ------
    CorruptDataError
        If a code names no value, a gap has more than gap_bits, or gaps lead out of the matrix.
    TypeError, ValueError
        For a wrong type or shape, and for a codebook that is not finite.

    Notes
    -----
    S. Han, H. Mao, W. Dally, Deep Compression, 2016. The arrays are read-only copies. Construction
    adds a copy of the entries in the order in which products read them, in time linear in their
    number, in parallel; ``execution_nbytes`` is its size. With codes of 4 bits it takes about 1.7
    bytes per entry at 80 % zeros, 1.9 at 90 %, 3.6 at 99 %; a matrix with fewer than one entry in
    500 is smaller as a :class:`CSR` of float32.

    ``W @ x`` is :func:`sparse_codebook_matmul`; ``x @ W`` makes a :class:`CSR` and its transpose
    each time. ``==`` and ``hash`` go by identity; compare ``to_dense()``. ``np.asarray`` is
    refused, as dense matrices may be large. Copies and pickles are checked and read-only, too.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> codebook = np.array([0, 0.5, -2], np.float32)
    >>> W = fastfactor.SparseCodes.from_labels([[0, 1, 0, 0], [0, 0, 2, 1]], codebook, gap_bits=2)
    >>> W
    SparseCodes(shape=(2, 4), n_entries=4, n_bits=2, gap_bits=2)
    >>> W.codes, W.gaps  # the second is a filler
    (array([1, 0, 2, 1], dtype=uint8), array([1, 3, 0, 0], dtype=uint8))
    >>> W.to_dense()
    array([[ 0. ,  0.5,  0. ,  0. ],
           [ 0. ,  0. , -2. ,  0.5]], dtype=float32)
    """

    __array_ufunc__ = None  # so that NumPy leaves ``x @ W`` to this class

    codes: Array
    gaps: Array
    gap_bits: int
    codebook: Array
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = _checks.sparse_shape(self.shape, "shape")
        size = _checks.integer(shape[0] * shape[1], "shape[0] * shape[1]", 0, MAX_SIZE)
        codebook = _check_codebook(self.codebook)
        codes = _codes(self.codes, codebook.size)
        gaps = np.array(as_array(self.gaps, "gaps"), order="C", copy=True)
        widest = 16 if gaps.dtype == np.uint16 else 8
        gap_bits = _checks.integer(self.gap_bits, "gap_bits", 1, widest)
        positions = gap_decode(gaps, gap_bits, size)
        if codes.size != gaps.size:
            raise ValueError(f"codes must be as long as gaps, {gaps.size}, got {codes.size}")
        kept = (codebook.astype(np.float32) != 0)[codes]
        layout, execution_nbytes = kernels.sparse_layout(
            positions[kept],
            codes[kept],
            rows=shape[0],
            cols=shape[1],
            wide=codebook.size > NARROW_ENTRIES,
            n_threads=thread_count(None),
        )
        table = np.zeros(WIDE_ENTRIES if codebook.size > NARROW_ENTRIES else NARROW_ENTRIES)
        table[: codebook.size] = codebook
        for array in (codes, gaps, codebook):
            array.setflags(write=False)
        for name, value in (
            ("codes", codes),
            ("gaps", gaps),
            ("gap_bits", gap_bits),
            ("codebook", codebook),
            ("shape", shape),
            ("_arranged", (layout, table.astype(np.float32), execution_nbytes)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_labels(
        cls,
        labels: Any,
        codebook: Any,
        *,
        mask: Any = None,
        gap_bits: int | None = None,
        n_threads: int | None = None,
    ) -> SparseCodes:
        """Code a pruned matrix from labels that say which shared value each weight has.

        Parameters
        ----------
        labels : array of shape (out_features, in_features)
            Integers in [0, K), such as the labels of :func:`kmeans1d` with ``fixed=[0]``.
        codebook : array of shape (K,) or (K, 1)
            The shared values. One of them must be zero, because fillers are coded as zero.
        mask : bool array of shape (out_features, in_features), optional
            Which weights are kept. By default those that are not zero.
        gap_bits : int, optional
            Bits of a gap, 1 to 16. By default the number with which entries take the fewest bits.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        SparseCodes

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, for a label that names no value, and for a codebook without
            zero.

        Notes
        -----
        Linear in the size of the matrix. The same codes for any number of threads.
        """
        table = _check_codebook(codebook)
        if gap_bits is not None:
            gap_bits = _checks.integer(gap_bits, "gap_bits", 1, 16)
        array = _checks.integers(labels, "labels")
        if array.ndim != 2:
            raise ValueError(f"labels must have 2 dimensions, got shape {array.shape}")
        outside = (array < 0) | (array >= table.size)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(f"labels must be in [0, {table.size}), got {array[at]} at {list(at)}")
        zeros = np.flatnonzero(table.astype(np.float32) == 0)
        if zeros.size == 0:
            raise ValueError("codebook must hold a zero, for fillers, got none")
        if mask is None:
            mask = (table.astype(np.float32) != 0)[array]
        else:
            mask = as_array(mask, "mask")
            if mask.dtype != np.bool_:
                raise TypeError(f"mask must have dtype bool, got {mask.dtype}")
            if mask.shape != array.shape:
                raise ValueError(
                    f"mask must have the shape of labels, {array.shape}, got {mask.shape}"
                )
        coded = gap_encode(
            mask, gap_bits=gap_bits, value_bits=code_bits_for(table.size), n_threads=n_threads
        )
        codes = np.full(coded.gaps.size, zeros[0], np.uint8)
        kept = np.ones(codes.size, np.bool_)
        kept[coded.fillers] = False
        codes[kept] = array[mask]
        return cls(codes, coded.gaps, coded.gap_bits, table, array.shape)

    def to_csr(self) -> CSR:
        """Return the matrix in compressed rows.

        Returns
        -------
        CSR
            In float32, without entries of value zero.
        """
        positions, values = self._entries()
        rows, columns = np.divmod(positions, max(self.shape[1], 1))
        indptr = np.zeros(self.shape[0] + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=self.shape[0]), out=indptr[1:])
        narrow = self.shape[1] <= np.iinfo(np.int32).max
        return CSR(values, columns.astype(np.int32 if narrow else np.int64), indptr, self.shape)

    def to_dense(self) -> Array:
        """Return the dense matrix.

        Returns
        -------
        float32 array of the matrix's shape
            Zero where nothing is stored.
        """
        dense = np.zeros(self.shape[0] * self.shape[1], np.float32)
        positions, values = self._entries()
        dense[positions] = values
        return dense.reshape(self.shape)

    def _entries(self) -> tuple[Array, Array]:
        positions = gap_decode(self.gaps, self.gap_bits, self.shape[0] * self.shape[1])
        values = self._execution[1][self.codes]
        return positions[values != 0], values[values != 0]

    @property
    def _execution(self) -> tuple[object, Array]:
        """The operands of products: the arranged entries, and 16 or 256 values in float32."""
        layout, table, _ = self.__dict__["_arranged"]
        return layout, table

    @property
    def n_bits(self) -> int:
        """Bits of a code: enough for the values of the codebook."""
        return code_bits_for(self.codebook.size)

    @property
    def stored_nbytes(self) -> int:
        """Bytes in a file: the codebook, and codes and gaps in as few bits as they need."""
        return -(-self.codes.size * (self.n_bits + self.gap_bits) // 8) + self.codebook.nbytes

    @property
    def execution_nbytes(self) -> int:
        """Bytes of the copy of the entries that is arranged for products."""
        return int(self.__dict__["_arranged"][2])

    @property
    def nbytes(self) -> int:
        """Bytes in memory: codes, gaps and codebook, and `execution_nbytes`."""
        arrays = self.codes.nbytes + self.gaps.nbytes + self.codebook.nbytes
        return arrays + self.execution_nbytes

    def __matmul__(self, x: Any) -> Array:
        """Return W x by :func:`sparse_codebook_matmul`: (in,) → (out,) or (in, n) → (out, n)."""
        x = _checks.columns(x, self.shape[1])
        return sparse_codebook_matmul(x.T, self).T

    def __rmatmul__(self, x: Any) -> Array:
        """Return x W, using `to_csr`: (..., out) → (..., in)."""
        return self.to_csr().__rmatmul__(x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        refuse_array(self, "to_dense()")

    def __repr__(self) -> str:
        return (
            f"SparseCodes(shape={self.shape}, n_entries={self.codes.size}, n_bits={self.n_bits}, "
            f"gap_bits={self.gap_bits})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are made through the constructor: checked again, read-only again.
        return SparseCodes, (self.codes, self.gaps, self.gap_bits, self.codebook, self.shape)


def sparse_codebook_matmul(
    x: Any, sparse_codes: SparseCodes, *, out: Any = None, n_threads: int | None = None
) -> Array:
    """Multiply by a pruned matrix with shared weights: ``x @ W.T``, without building W.

    Parameters
    ----------
    x : array of shape (..., in_features)
        float16, bfloat16, float32 or float64, any strides.
    sparse_codes : SparseCodes
        The matrix W, of shape (out_features, in_features).
    out : float32 array of shape (..., out_features), optional
        Where to write the result: C-contiguous and writeable, without overlap with ``x``.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    float32 array of shape (..., out_features)
        ``out`` if it was given.

    Raises
    ------
    TypeError, ValueError
        For a wrong type or shape. Nothing is written then.

    Notes
    -----
    ``|y − Wx| ≤ 1e-5 · Σ|w x|``: sums are in float32, those of long rows in float64; a float64
    ``x`` is rounded to float32 first. NaN and infinity in ``x`` spread as IEEE 754 says; entries of
    value zero are not multiplied. The same bits for any number of threads.

    Work and memory traffic are proportional to ``sparse_codes.execution_nbytes``; threads take 256
    rows at a time. One input, or up to 6 with AVX-512 VBMI, is looked up by position, a tile at a
    time; more inputs are first interleaved, up to 32 at a time, in a copy in float32.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> codebook = np.array([0, 0.5, -2], np.float32)
    >>> W = fastfactor.SparseCodes.from_labels([[0, 1, 0, 0], [0, 0, 2, 1]], codebook)
    >>> fastfactor.sparse_codebook_matmul(np.array([1, 2, 3, 4], np.float32), W)
    array([ 1., -4.], dtype=float32)
    """
    if not isinstance(sparse_codes, SparseCodes):
        raise TypeError(f"sparse_codes must be a SparseCodes, got {type(sparse_codes).__name__}")
    x = _checks.inputs(x, sparse_codes.shape[1])
    shape = (*x.shape[:-1], sparse_codes.shape[0])
    result = output(out, shape, np.dtype(np.float32), {"x": x})
    kernels.sparse_codebook_matmul(
        as_batch(x),
        *sparse_codes._execution,
        out=as_batch(result),
        n_threads=thread_count(n_threads),
    )
    return result


def sparse_codebook_product(sparse_codes: SparseCodes) -> Callable[[Array, int], Array]:
    """Return `sparse_codebook_matmul` for one matrix.

    Parameters
    ----------
    sparse_codes : SparseCodes
        As in :func:`sparse_codebook_matmul`.

    Returns
    -------
    callable
        Takes x, a float array of shape (batch, in_features), and a number of threads. It does not
        check them.
    """
    layout, table = sparse_codes._execution

    def product(x: Array, n_threads: int) -> Array:
        result = np.empty((len(x), sparse_codes.shape[0]), np.float32)
        kernels.sparse_codebook_matmul(x, layout, table, out=result, n_threads=n_threads)
        return result

    return product


def _check_codebook(codebook: Any) -> Array:
    table = _checks.float_array(codebook, "codebook", ndim=(1, 2))
    if table.dtype == np.float64:
        raise TypeError("codebook must have dtype float16, bfloat16 or float32, got float64")
    if table.ndim == 2 and table.shape[1] != 1:
        raise ValueError(f"codebook must have shape (K,) or (K, 1), got {table.shape}")
    _checks.integer(len(table), "len(codebook)", 1, WIDE_ENTRIES)
    _checks.finite(table, "codebook")
    return np.array(table, order="C", copy=True).reshape(-1)


def _codes(codes: Any, n_values: int) -> Array:
    array = as_array(codes, "codes")
    if array.dtype != np.uint8:
        raise TypeError(f"codes must have dtype uint8, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"codes must have 1 dimension, got shape {array.shape}")
    if array.size and int(array.max()) >= n_values:
        at = int(np.argmax(array >= n_values))
        raise CorruptDataError(f"codes must be in [0, {n_values}), got {array[at]} at [{at}]")
    return np.array(array, order="C", copy=True)
