"""Values of other libraries, and imitations of those that tests do without.

`TAKEN` and `REFUSED` map a kind's name to a function that makes a value of this kind from a plain
array; the function returns None where the kind has no such value.
"""

from __future__ import annotations

import types

import numpy as np
import scipy.sparse

# --- torch, as far as a tensor's way to NumPy goes


class Tensor:
    """Behave as a torch tensor does on its way to NumPy, refusals included."""

    def __init__(self, array, dtype=None, *, device="cpu", layout="strided", requires_grad=False):
        self._array = array
        self.dtype = f"torch.{dtype or array.dtype.name}"
        self.device = types.SimpleNamespace(type=device.partition(":")[0], name=device)
        self.layout = f"torch.{layout}"
        self.requires_grad = requires_grad

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def __len__(self):
        return len(self._array)

    def __getitem__(self, at):
        return Tensor(self._array[at], requires_grad=self.requires_grad)

    def float(self):
        return Tensor(self._array.astype(np.float32))

    def detach(self):
        return Tensor(self._array, self.dtype.removeprefix("torch."))

    def view(self, dtype):
        return Tensor(self._array.view(dtype))

    def numpy(self):
        if self.device.type != "cpu":
            raise TypeError(f"can't convert {self.device.name} device type tensor to numpy.")
        if self.layout != "torch.strided":
            raise TypeError("can't convert Sparse layout tensor to numpy.")
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if not hasattr(np, self.dtype.removeprefix("torch.")):
            raise TypeError("Got unsupported ScalarType")
        return self._array


Tensor.__module__ = "torch"


class Parameter(Tensor):
    """A tensor that always requires a gradient."""

    def __init__(self, array):
        super().__init__(array, requires_grad=True)


Parameter.__module__ = "torch.nn.parameter"
TORCH = types.SimpleNamespace(Tensor=Tensor, int16=np.int16, uint8=np.uint8)


# --- others


class Frame:
    """Behave as a pandas DataFrame or Series: iteration gives names, conversion gives values."""

    def __init__(self, array):
        self._array = array
        self.shape = array.shape

    def __array__(self, dtype=None, copy=None):
        return self._array if dtype is None else self._array.astype(dtype)

    def __iter__(self):
        return iter([f"column {i}" for i in range(self.shape[-1])])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, name):
        raise KeyError(name)

    def astype(self, dtype):
        return Frame(self._array.astype(dtype))


class Exchanged:
    """An array of a library that knows the DLPack protocol only."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class OnDevice:
    """An array whose library refuses to copy it from a device without being asked."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.\nUse `.get()`.")


class Tagged(np.ndarray):
    """A subclass of NumPy's arrays, with a product of its own."""

    def __mul__(self, other):
        raise AssertionError("products of plain arrays are wanted")


def masked(array, *, mask):
    if array.size == 0:
        return None
    hidden = np.zeros(array.shape, bool)
    hidden.flat[0] = mask
    return np.ma.array(array, mask=hidden)


def exchanged(array):
    known = array.dtype.kind in "iuf" and array.dtype.isbuiltin == 1 and array.flags.writeable
    return Exchanged(array) if known else None


def sparse(array):
    if array.ndim != 2 or array.dtype.isbuiltin != 1 or array.dtype == np.float16:
        return None
    return scipy.sparse.csr_array(array)


def ragged(array):
    """As nested lists of different lengths."""
    rows = [*np.atleast_2d(array).tolist(), [0]]
    return None if len(rows[0]) == 1 else rows


TAKEN = {
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else None,
    "masked array without masked values": lambda a: masked(a, mask=False),
    "recarray": lambda a: a.view(np.recarray),
    "other subclass": lambda a: a.view(Tagged),
    "torch tensor": Tensor,
    "torch parameter": Parameter,
    "pandas": Frame,
    "DLPack": exchanged,
}
REFUSED = {
    "masked array": lambda a: masked(a, mask=True),
    "list of masked arrays": lambda a: [masked(a, mask=True)] if a.size else None,
    "sparse": sparse,
    "sparse matrix": lambda a: None if sparse(a) is None else scipy.sparse.coo_matrix(sparse(a)),
    "torch tensor on a GPU": lambda a: Tensor(a, device="cuda:0"),
    "sparse torch tensor": lambda a: Tensor(a, layout="sparse_coo"),
    "array on a device": lambda a: OnDevice(),
    "objects": lambda a: a.astype(object),
    "pandas of objects": lambda a: Frame(np.append(a.astype(object), None)),
    "ragged list": ragged,
    "numbers too large": lambda a: [2**70] * len(a) if a.ndim else None,
    "list with None": lambda a: [None] * len(a) if a.ndim else None,
    "text": lambda a: "text",
    "array of text": lambda a: a.astype(str),
    "complex": lambda a: a.astype(np.complex64),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "structured": lambda a: np.zeros(a.shape, [("a", "f4"), ("b", "i4")]),
    "dict": lambda a: {"a": 1},
    "generator": lambda a: (value for value in a),
}
