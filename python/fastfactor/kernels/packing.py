"""Integers of a few bits each, packed into bytes: codes into codebooks, counts, indices, masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .. import _checks
from .._arrays import as_array
from .._checks import Array
from .._core import kernels
from .._records import refuse_array
from ..errors import CorruptDataError
from .runtime import thread_count

MAX_BITS = 16  # of a code
MAX_FLAT_BITS = 32  # of an integer in a flat array
MAX_CODEBOOKS = 256


@dataclass(frozen=True, eq=False, repr=False)
class PackedCodes:
    """Codes of 1 to 16 bits that stand for a dense matrix, packed into bytes.

    A code is an index into a codebook of 2**n_bits vectors of length ``vector_dim``. It stands for
    that many adjacent entries in a row of the matrix, so a row has ``shape[1] / vector_dim`` codes.
    With several codebooks (additive coding) every place has one code for each of them.

    Row ``i`` of ``data`` holds row ``i`` of the matrix: the codes for codebook 0, then those for
    codebook 1, and so on. The codes for each codebook begin with a new byte. From there, code ``j``
    fills the bits ``[j * n_bits, (j + 1) * n_bits)``, least significant bit first, where bit ``k``
    is bit ``k % 8`` (0 is the least significant) of byte ``k // 8``. Bits after the last code are
    zero.

    Parameters
    ----------
    data : bytes, or uint8 array of shape (shape[0], bytes per row)
        A row has ``n_codebooks * ceil(shape[1] / vector_dim * n_bits / 8)`` bytes. Bytes and
        1-D arrays of the right total size are accepted. Kept as a read-only copy of that shape.
    n_bits : int
        Bits of a code, 1 to 16; products (:func:`codebook_matmul`) accept up to 8.
    shape : (int, int)
        Shape of the dense matrix, (out_features, in_features).
    vector_dim : int
        Entries of the matrix that one code stands for; divides ``shape[1]``.
    n_codebooks : int
        Number of codes for each place, up to 256.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, or ``data`` a wrong size.
    CorruptDataError
        If bits after the last code of a row are not zero.

    Notes
    -----
    Construction costs a copy. ``@`` is refused, because codes have no product without a codebook,
    and so is ``np.asarray``, which could mean the codes or the bytes. ``==`` and ``hash`` go by
    identity. Copies and pickles are checked and read-only, too. Every code is a valid index into a
    codebook of 2**n_bits entries, so stored bytes need no other checks.

    Examples
    --------
    >>> import numpy as np, fastfactor
    >>> packed = fastfactor.PackedCodes.pack(np.array([[1, 2, 3], [0, 0, 7]]), 3)
    >>> packed
    PackedCodes(n_bits=3, shape=(2, 3), vector_dim=1, n_codebooks=1, nbytes=4)
    >>> [f"{byte:08b}" for byte in packed.data[0]]  # …3 2 1, from the right
    ['11010001', '00000000']
    >>> packed.unpack()
    array([[1, 2, 3],
           [0, 0, 7]], dtype=uint8)
    """

    __array_ufunc__ = None  # so that NumPy refuses ``x @ packed``

    data: Array
    n_bits: int
    shape: tuple[int, int]
    vector_dim: int = 1
    n_codebooks: int = 1

    def __post_init__(self) -> None:
        n_bits = _checks.integer(self.n_bits, "n_bits", 1, MAX_BITS)
        shape = _checks.sparse_shape(self.shape, "shape")
        vector_dim = _check_vector_dim(self.vector_dim, shape[1])
        n_codebooks = _checks.integer(self.n_codebooks, "n_codebooks", 1, MAX_CODEBOOKS)
        segment = -(-(shape[1] // vector_dim) * n_bits // 8)
        data = np.array(_checks.as_bytes(self.data, "data"), order="C", copy=True)
        expected = (shape[0], n_codebooks * segment)
        if data.size != expected[0] * expected[1] or (data.ndim > 1 and data.shape != expected):
            raise ValueError(
                f"data must have shape {expected} for {n_bits} bits a code, shape {shape}, "
                f"vector_dim {vector_dim} and n_codebooks {n_codebooks}, got {data.shape}"
            )
        data = data.reshape(expected)
        used = shape[1] // vector_dim * n_bits % 8
        if used:
            last = data[:, segment - 1 :: segment] >> used
            if last.any():
                row, book = (int(i) for i in np.argwhere(last)[0])
                raise CorruptDataError(
                    f"data must have zeros after the last code of a row, got "
                    f"0b{data[row, (book + 1) * segment - 1]:08b} with {used} bits in use as the "
                    f"last byte of row {row}, codebook {book}"
                )
        self._hold(data, n_bits, shape, vector_dim, n_codebooks)

    def _hold(
        self, data: Array, n_bits: int, shape: tuple[int, int], vector_dim: int, n_codebooks: int
    ) -> None:
        data.setflags(write=False)
        for name, value in (
            ("data", data),
            ("n_bits", n_bits),
            ("shape", shape),
            ("vector_dim", vector_dim),
            ("n_codebooks", n_codebooks),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def pack(
        cls, codes: Any, n_bits: int, *, vector_dim: int = 1, n_threads: int | None = None
    ) -> PackedCodes:
        """Pack integer codes, such as the labels of :func:`fastfactor.kmeans`.

        Parameters
        ----------
        codes : array of shape (rows, n) or (n_codebooks, rows, n)
            Integers of any width or booleans in [0, 2**n_bits), any strides.
        n_bits : int
            Bits of a code, 1 to 16.
        vector_dim : int
            Entries of the matrix that one code stands for; the matrix is (rows, n · vector_dim).
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        PackedCodes

        Raises
        ------
        TypeError, ValueError
            For a wrong type or shape, and for a code that n_bits cannot hold.

        Notes
        -----
        Linear in the number of codes; the same bytes for any number of threads.

        Examples
        --------
        >>> import numpy as np, fastfactor
        >>> fastfactor.PackedCodes.pack(np.arange(4).reshape(1, 4), 2).data
        array([[228]], dtype=uint8)
        """
        n_bits = _checks.integer(n_bits, "n_bits", 1, MAX_BITS)
        array = _integers(codes, "codes")
        if array.ndim not in (2, 3):
            raise ValueError(f"codes must have 2 or 3 dimensions, got shape {array.shape}")
        array = array.reshape(1, *array.shape) if array.ndim == 2 else array
        vector_dim = _checks.integer(vector_dim, "vector_dim", 1)
        n_codebooks = _checks.integer(array.shape[0], "codes.shape[0]", 1, MAX_CODEBOOKS)
        packed = cls.__new__(cls)
        packed._hold(
            kernels.pack_codes(array, n_bits, thread_count(n_threads)),
            n_bits,
            (array.shape[1], array.shape[2] * vector_dim),
            vector_dim,
            n_codebooks,
        )
        return packed

    def unpack(self, *, n_threads: int | None = None) -> Array:
        """Return the codes, one per element.

        Parameters
        ----------
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

        Returns
        -------
        array of shape (rows, n), or (n_codebooks, rows, n) where there are several
            uint8, or uint16 for codes of more than 8 bits.
        """
        codes = kernels.unpack_codes(
            self.data,
            self.n_bits,
            books=self.n_codebooks,
            rows=self.shape[0],
            cols=self.shape[1] // self.vector_dim,
            n_threads=thread_count(n_threads),
        )
        return codes if self.n_codebooks > 1 else codes[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes."""
        return self.data.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        refuse_array(self, "unpack(), or its attribute data")

    def __repr__(self) -> str:
        return (
            f"PackedCodes(n_bits={self.n_bits}, shape={self.shape}, vector_dim={self.vector_dim}, "
            f"n_codebooks={self.n_codebooks}, nbytes={self.nbytes})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are made through the constructor: checked again, read-only again.
        return PackedCodes, (
            self.data,
            self.n_bits,
            self.shape,
            self.vector_dim,
            self.n_codebooks,
        )


def pack_bits(values: Any, n_bits: int, *, n_threads: int | None = None) -> Array:
    """Pack integers of up to 32 bits each into bytes, least significant bit first.

    The layout is that of one row of :class:`PackedCodes`. Everything that is stored in a fixed
    number of bits is packed like this: codes, counts, indices, gaps and masks.

    Parameters
    ----------
    values : array of shape (n,)
        Integers of any width or booleans in [0, 2**n_bits).
    n_bits : int
        0 to 32; with 0 every value must be zero and takes no space.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    uint8 array of shape (packed_nbytes(n, n_bits),)

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.kernels.packing import pack_bits, unpack_bits
    >>> packed = pack_bits(np.array([1, 2, 511]), 9)
    >>> packed.nbytes, unpack_bits(packed, 9, 3)
    (4, array([  1,   2, 511], dtype=uint16))
    """
    n_bits = _checks.integer(n_bits, "n_bits", 0, MAX_FLAT_BITS)
    array = _integers(values, "values")
    if array.ndim != 1:
        raise ValueError(f"values must have 1 dimension, got shape {array.shape}")
    if n_bits == 0:
        if array.any():
            raise ValueError(f"values must be zero for n_bits = 0, got {array[array != 0][0]}")
        return np.zeros(0, np.uint8)
    packed: Array = kernels.pack_codes(array[None, None], n_bits, thread_count(n_threads))[0]
    return packed


def unpack_bits(data: Any, n_bits: int, n: int, *, n_threads: int | None = None) -> Array:
    """Return the integers that :func:`pack_bits` packed.

    Parameters
    ----------
    data : bytes, or uint8 array of shape (packed_nbytes(n, n_bits),)
    n_bits : int
        0 to 32, as packed.
    n : int
        Number of integers.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    array of shape (n,)
        uint8 up to 8 bits, uint16 up to 16, else uint32.

    Raises
    ------
    CorruptDataError
        If ``data`` has a wrong size, or bits after the last integer are not zero.
    """
    n_bits = _checks.integer(n_bits, "n_bits", 0, MAX_FLAT_BITS)
    array = np.ascontiguousarray(_checks.as_bytes(data, "data"))
    expected = packed_nbytes(n, n_bits)
    if array.size != expected:
        raise CorruptDataError(
            f"data must have {expected} bytes for {n} integers of {n_bits} bits, got {array.size}"
        )
    if n_bits == 0:
        return np.zeros(n, np.uint8)
    used = n * n_bits % 8
    if used and array.flat[-1] >> used:
        raise CorruptDataError(
            f"data must have zeros after the last integer, got 0b{array.flat[-1]:08b} with "
            f"{used} bits in use as the last byte"
        )
    numbers: Array = kernels.unpack_codes(
        array, n_bits, books=1, rows=1, cols=n, n_threads=thread_count(n_threads)
    )[0, 0]
    return numbers


def packed_nbytes(n: int, n_bits: int) -> int:
    """Return how many bytes ``n`` integers of ``n_bits`` bits take, packed."""
    return -(-n * n_bits // 8)


def bits_for(n: int) -> int:
    """Return how many bits each of the numbers 0, 1, …, n − 1 needs."""
    return max(n - 1, 0).bit_length()


def code_bits_for(n_values: int) -> int:
    """Return the bits of a code that names one of ``n_values`` values, at least 1."""
    return max(bits_for(n_values), 1)


def _integers(array: Any, name: str) -> Array:
    result = as_array(array, name)
    if result.dtype.kind not in "iub" or not result.dtype.isnative:
        raise TypeError(
            f"{name} must be integers or booleans in native byte order, got {result.dtype}"
        )
    return result


def _check_vector_dim(vector_dim: Any, columns: int) -> int:
    length = _checks.integer(vector_dim, "vector_dim", 1)
    if columns % length:
        raise ValueError(f"vector_dim must divide shape[1], {columns}, got {length}")
    return length
