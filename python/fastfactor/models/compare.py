"""Errors between the tensors of two files, compressed or not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .._checks import Array
from ..files.checkpoint import Checkpoint, is_compressed, open_checkpoint
from ..files.container import OpaqueTensor
from ..files.index import Path, Value
from ..files.layout import Layout
from ..files.store import Store, open_store
from ..kernels.runtime import thread_count
from ..methods.factors import Factors
from .report import Table

VALUES_AT_ONCE = 1 << 18  # of a tensor, so that large ones are compared in little memory


@dataclass(frozen=True)
class Difference:
    """The difference between two tensors of the same shape.

    Attributes
    ----------
    equal : bool
        Whether all values are equal; NaN is equal to NaN.
    relative_error : float
        ‖a − b‖² / ‖a‖²; infinite if they differ and a is zero or a value is not finite.
    largest : float
        The largest |a − b|.
    """

    equal: bool
    relative_error: float
    largest: float


@dataclass(frozen=True)
class ComparedRow:
    """One tensor of a comparison.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Shape in the first file, or in the only one that has the tensor.
    dtype : str
        Dtype in that file, and in the other one if it differs.
    fault : str
        Why the values were not compared; else empty.
    equal : bool
    relative_error, largest : float or None
        As in :class:`Difference`; None if there is a fault.
    bytes_first, bytes_second : int or None
        Bytes of the tensor in each file; None if the file does not have it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fault: str
    equal: bool
    relative_error: float | None
    largest: float | None
    bytes_first: int | None
    bytes_second: int | None


@dataclass(frozen=True, repr=False)
class Comparison:
    """The comparison of all tensors of two files.

    Attributes
    ----------
    first, second : str
    rows : tuple of ComparedRow
        In the order of the first file, then the tensors that only the second has.
    """

    first: str
    second: str
    rows: tuple[ComparedRow, ...]

    @property
    def equal(self) -> bool:
        """Whether both files have the same tensors with the same values."""
        return all(row.equal for row in self.rows)

    @property
    def largest_error(self) -> float:
        """The largest relative error of a tensor; infinite if there is a fault."""
        return _error(self.worst) if self.worst else 0.0

    @property
    def worst(self) -> ComparedRow | None:
        """The first tensor with the largest error; None if there are no tensors."""
        return max(self.rows, key=_error, default=None)

    def table(self) -> Table:
        """Return the comparison as a table, to print or save."""
        n_equal = sum(row.equal for row in self.rows)
        n_faults = sum(bool(row.fault) for row in self.rows)
        summary = f"{n_equal} of {len(self.rows)} tensors are equal"
        if n_faults:
            summary += f", {n_faults} could not be compared"
        records = [{**asdict(row), "shape": list(row.shape)} for row in self.rows]
        columns = {
            "name": "tensor",
            "shape": "shape",
            "dtype": "dtype",
            "relative_error": "error",
            "largest": "largest",
            "bytes_first": "bytes, first",
            "bytes_second": "second",
            "equal": "equal",
            "fault": "fault",
        }
        if not n_faults:
            del columns["fault"]
        totals = {
            "first": self.first,
            "second": self.second,
            "n_tensors": len(self.rows),
            "n_equal": n_equal,
            "n_faults": n_faults,
            "largest_error": self.largest_error,
        }
        return Table(f"{self.first} and {self.second}", records, columns, totals, summary)

    def __repr__(self) -> str:
        table = self.table()
        return f"Comparison({table.title}: {table.summary})"


def compare_files(
    first: Path,
    second: Path,
    *,
    max_dense_nbytes: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    n_threads: int | None = None,
) -> Comparison:
    """Compute the error of each tensor of a file against another file.

    Parameters
    ----------
    first, second : path
        Compressed files, or models as :func:`compress_file` reads them. Errors are those of the
        second file, relative to the first.
    max_dense_nbytes : int, optional
        The most bytes that the dense form of a compressed tensor may have, as for
        :func:`fastfactor.store.open_store`.
    progress : callable, optional
        As for :func:`compress_file`.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    Comparison
        A row for each tensor, and the largest errors.

    Raises
    ------
    CorruptDataError
        If a file is damaged.
    TypeError, ValueError
        If a newer version of fastfactor wrote a file.
    OSError
        If a file cannot be read.

    Notes
    -----
    Reads both files once. Compressed tensors are rebuilt a few rows at a time. Sums are float64.

    Examples
    --------
    >>> import tempfile, numpy as np, fastfactor
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/a.npz", fc=np.array([3.0, 4.0]), bias=np.zeros(2))
    ...     np.savez(folder + "/b.npz", fc=np.array([3.0, 4.5]), bias=np.zeros(2))
    ...     found = fastfactor.compare_files(folder + "/a.npz", folder + "/b.npz")
    >>> [(row.name, row.equal, row.relative_error) for row in found.rows]
    [('fc', False, 0.01), ('bias', True, 0.0)]
    """
    thread_count(n_threads)
    one, other = (open_tensors(each, max_dense_nbytes) for each in (first, second))
    names = [*one, *(name for name in other if name not in one)]
    sizes = [math.prod(_shape(one if name in one else other, name)) for name in names]
    rows, done = [], 0
    for name, size in zip(names, sizes, strict=True):
        if progress is not None:
            progress(name, done, sum(sizes))
        rows.append(_compared(name, one, other, n_threads))
        done += size
    if progress is not None:
        progress("", done, done)
    return Comparison(os.fspath(first), os.fspath(second), tuple(rows))


def open_tensors(path: Path, max_dense_nbytes: int | None = None) -> Checkpoint | Store:
    """Open a file of tensors, compressed or not."""
    if is_compressed(path):
        return open_store(path, max_dense_nbytes=max_dense_nbytes)
    return open_checkpoint(path)


def difference(a: Value, b: Value, *, n_threads: int | None = None) -> Difference:
    """Compare two tensors of the same shape as matrices, a few rows at a time, in float64."""
    if isinstance(a, OpaqueTensor) or isinstance(b, OpaqueTensor):
        return _opaque_difference(a, b)
    equal, lost, total, largest = True, 0.0, 0.0, 0.0
    n_rows, n_columns = _matrix(a).shape
    if n_rows * n_columns == 0:
        return Difference(True, 0.0, 0.0)
    step = max(VALUES_AT_ONCE // max(n_columns, 1), 1)
    for at in range(0, n_rows, step):
        ids = slice(at, min(at + step, n_rows))
        x, y = _rows(a, ids, n_threads), _rows(b, ids, n_threads)
        same = x == y
        x, y = x.astype(np.float64), y.astype(np.float64)
        same |= np.isnan(x) & np.isnan(y)
        total += float(np.einsum("ij,ij->", x, x))
        if same.all():
            continue
        equal = False
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0, x - y)
        lost += float(np.einsum("ij,ij->", apart, apart))
        largest = max(largest, _or_infinite(float(np.abs(apart).max())))
    if equal or lost == 0:
        return Difference(equal, 0.0, largest)
    ratio = lost / total if total > 0 and math.isfinite(total) else math.inf
    return Difference(False, _or_infinite(ratio), largest)


def _opaque_difference(a: Value, b: Value) -> Difference:
    """Compare tensors of which one has a dtype that NumPy lacks: only bytes can be compared."""
    equal = (
        isinstance(a, OpaqueTensor)
        and isinstance(b, OpaqueTensor)
        and a.dtype == b.dtype
        and np.array_equal(a.data, b.data)
    )
    return Difference(True, 0.0, 0.0) if equal else Difference(False, math.inf, math.inf)


def _compared(
    name: str, one: Checkpoint | Store, other: Checkpoint | Store, n_threads: int | None
) -> ComparedRow:
    here = [model for model in (one, other) if name in model]
    shape, dtype = _shape(here[0], name), _dtype(here[0], name)
    sizes = [_nbytes(model, name) if name in model else None for model in (one, other)]
    found, fault = None, ""
    if len(here) == 1:
        fault = f"only in the {'first' if name in one else 'second'} file"
    elif _shape(other, name) != shape:
        fault = f"shape {_shape(other, name)} in the second file"
    else:
        if _dtype(other, name) != dtype:
            dtype = f"{dtype}, {_dtype(other, name)}"
        a, b = _alike(name, one, other, n_threads)
        found = difference(a, b, n_threads=n_threads)
    return ComparedRow(
        name=name,
        shape=shape,
        dtype=dtype,
        fault=fault,
        equal=found is not None and found.equal,
        relative_error=found.relative_error if found else None,
        largest=found.largest if found else None,
        bytes_first=sizes[0],
        bytes_second=sizes[1],
    )


def _alike(
    name: str, one: Checkpoint | Store, other: Checkpoint | Store, n_threads: int | None
) -> tuple[Value, Value]:
    """Return both values of a tensor so that row i of one, as a matrix, is row i of the other."""
    a, b = one[name], other[name]
    if isinstance(a, OpaqueTensor) or isinstance(b, OpaqueTensor):
        return a, b
    if isinstance(a, Factors) and isinstance(b, Factors):
        if _layout(one, name) == _layout(other, name):
            return a, b
        b = _layout(other, name).to_tensor(b.to_dense(n_threads=n_threads))
    if isinstance(a, Factors) and not isinstance(b, Factors):
        return a, _layout(one, name).to_matrix(b)
    if isinstance(b, Factors) and not isinstance(a, Factors):
        return _layout(other, name).to_matrix(a), b
    return a, b


def _layout(model: Checkpoint | Store, name: str) -> Layout:
    return model.info(name).layout if isinstance(model, Store) else Layout.of(_shape(model, name))


def _error(row: ComparedRow) -> float:
    return math.inf if row.relative_error is None else row.relative_error


def _shape(model: Checkpoint | Store, name: str) -> tuple[int, ...]:
    if isinstance(model, Store):
        return model.info(name).shape
    return model.tensors[name].shape


def _dtype(model: Checkpoint | Store, name: str) -> str:
    if isinstance(model, Store):
        return model.info(name).dtype.name
    return model.tensors[name].dtype.name


def _nbytes(model: Checkpoint | Store, name: str) -> int:
    if isinstance(model, Store):
        return model.info(name).nbytes
    return model.tensors[name].nbytes


def _matrix(value: Value) -> Any:
    """Return factors unchanged, and a tensor as a matrix whose rows are its first axis."""
    if isinstance(value, Factors):
        return value
    if value.dtype.kind == "c":
        value = value.reshape(*value.shape, 1).view(value.real.dtype)
    return value.reshape(len(value), -1) if value.ndim and value.size else value.reshape(-1, 1)


def _rows(value: Value, ids: slice, n_threads: int | None) -> Array:
    matrix = _matrix(value)
    if isinstance(matrix, Factors):
        return matrix.rows(np.arange(ids.start, ids.stop), n_threads=n_threads)
    rows: Array = matrix[ids]
    return rows


def _or_infinite(number: float) -> float:
    return number if math.isfinite(number) else math.inf
