"""Products on a CPU by this package's kernels, from the tensors that an operator is given.

What was unpacked of a weight's codes is kept as long as the tensor with their bytes lives. Trained
numbers are never kept: kernels read them where they are, or a copy that is compared in each call.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from .. import _checks
from .._arrays import Array
from ..adapters import TorchNamespace
from ..errors import CorruptDataError
from ..methods.codebook.method import CodebookFactors
from ..methods.dictionary.factors import DictionaryFactors
from ..methods.factors import Factors
from ..methods.pruning.prune import PruneFactors
from ..methods.pruning.shared_weights import SharedWeightsFactors
from .description import NEED_NO_NUMBERS, Description, fixed_arrays, read_description
from .trained_numbers import TrainedNumbers

XP = TorchNamespace()

# Kinds whose kernels are faster than PyTorch's operations, and those of them that read the trained
# numbers in each product. The others keep something that is made of them.
FAST = frozenset({"codebook", "deep_compression", "dictionary", "prune", "prune_codebook"})
READ_IN_PLACE = frozenset({"codebook", "dictionary", "prune"})

# From here on W is rebuilt and multiplied densely, which costs less. All measured on one core with
# AVX-512 and matrices of 1024 x 1024.
CODEBOOK_BATCH = 64
DICTIONARY_PRODUCTS = 1 << 20  # of an atom with a block of an input: more do not stay in cache
DENSE_SHARE = 0.2  # of kept weights, up to which a sparse product of any batch is no slower
REBUILD_COST = 50  # of a pruned matrix, in dense products of one input

# Tables of few rows with short blocks: PyTorch's look-up takes a third of the time for many rows.
SHORT_BLOCK = 32
FEW_ROWS = 16


class _ByKernels(NamedTuple):
    """Factors for kernels, and the trained tensors for which they were made.

    Attributes
    ----------
    factors : Factors or None
        None if kernels refuse the numbers.
    product : callable
        Takes inputs (batch, in_features) and a number of threads, returns ``x @ W.T``.
    look_up : callable
        Takes ids in int64, in any shape, and a number of threads, returns ``W[ids]``.
    rebuilds_from : int
        The smallest batch for which rebuilding W takes less time than the kernel.
    made_of : TrainedNumbers
        The tensors.
    """

    factors: Factors | None
    product: Callable[[Array, int], Array]
    look_up: Callable[[Array, int], Array]
    rebuilds_from: int
    made_of: TrainedNumbers


class Prepared:
    """The factors of one weight with its codes unpacked.

    Attributes
    ----------
    description : str
    told : Description
        What it says.
    """

    def __init__(self, description: str, fixed: torch.Tensor) -> None:
        self.description = description
        self.told = read_description(description)
        self._fixed = fixed_arrays(self.told, fixed)
        self._factors: Factors | None = None
        self._by_kernels: _ByKernels | None = None

    def is_for(self, tensors: Sequence[torch.Tensor], description: str) -> bool:
        """Return whether an operator that is given these arguments means this weight."""
        return self.description == description and len(tensors) == len(self.told.trained) + 1

    def linear(self, x: torch.Tensor, trained: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return ``x @ W.T``, for x of shape (..., in)."""
        check_linear(x, trained, self.told)
        factors, product, _, rebuilds_from, _ = self.for_kernels(trained)
        if factors is None or x.numel() == 0 or 0 in self.told.shape:
            return _linear_by_torch(x, trained, self)
        plain = x.detach() if x.requires_grad else x
        inputs = plain.numpy() if x.dtype is torch.float32 else plain.float().numpy()
        batch = inputs if inputs.ndim == 2 else inputs.reshape(-1, inputs.shape[-1])
        n_threads = torch.get_num_threads()
        if len(batch) < rebuilds_from:
            y = np.ascontiguousarray(product(batch, n_threads))
        else:
            W = torch.from_numpy(factors.rows(np.arange(factors.shape[0]), n_threads=n_threads))
            y = functional.linear(torch.from_numpy(batch), W).numpy()
        result = torch.from_numpy(y if inputs.ndim == 2 else y.reshape(*inputs.shape[:-1], -1))
        return result if x.dtype is torch.float32 else result.to(x.dtype)

    def rows(self, ids: torch.Tensor, trained: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the rows of W with these ids, of shape ids.shape + (in,)."""
        factors, _, look_up, _, _ = self.for_kernels(trained)
        if factors is None or _is_slow_look_up(factors, ids.numel()):
            return _rows_by_torch(ids, trained, self)
        wanted = ids if ids.dtype is torch.int64 else ids.long()
        found = torch.from_numpy(look_up(wanted.numpy(), torch.get_num_threads()))
        return found if trained[0].dtype is torch.float32 else found.to(trained[0].dtype)

    def factors(self, trained: Sequence[torch.Tensor]) -> Factors:
        """Return factors whose `forward` takes the trained tensors beside."""
        if self._factors is None:
            zeros = {
                name: np.zeros(tuple(tensor.shape), np.float32)
                for name, tensor in zip(self.told.trained, trained, strict=True)
                if name not in self._fixed
            }
            self._factors = self._made(zeros)
        return self._factors

    def for_kernels(self, trained: Sequence[torch.Tensor]) -> _ByKernels:
        """Return factors with the trained numbers as they are now."""
        known = self._by_kernels
        if known is None or not known.made_of.are_those_of(trained):
            self._by_kernels = known = self._read(trained)  # at once, for other threads
        return known

    def _read(self, trained: Sequence[torch.Tensor]) -> _ByKernels:
        is_fast = self.told.kind in FAST and all(t.dtype != torch.float64 for t in trained)
        is_read_in_place = self.told.kind in READ_IN_PLACE and all(
            t.dtype == torch.float32 and t.is_contiguous() for t in trained
        )
        made_of = TrainedNumbers(trained, copied=is_fast and not is_read_in_place)
        refused = _ByKernels(None, _no_product, _no_product, 0, made_of)
        if not is_fast:
            return refused
        arrays = {
            name: tensor.detach().float().contiguous().numpy()
            for name, tensor in zip(self.told.trained, trained, strict=True)
        }
        if self._misses_a_zero(arrays):
            return refused
        try:
            factors = self._made(arrays)
        except CorruptDataError:  # a table with numbers that are not finite
            return refused
        product, look_up = factors._prepared_linear(), factors._prepared_rows()
        return _ByKernels(factors, product, look_up, _rebuilds_from(factors), made_of)

    def _misses_a_zero(self, arrays: Mapping[str, Array]) -> bool:
        """Return whether a zero of a table was trained, which dropped weights may have too."""
        return any(
            array[self._fixed[n] == 0].any() for n, array in arrays.items() if n in self._fixed
        )

    def named(self, trained: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the trained tensors by name."""
        return dict(zip(self.told.trained, trained, strict=True))

    def _made(self, arrays: Mapping[str, Array]) -> Factors:
        told = self.told
        if told.kind not in Factors.kinds:
            raise RuntimeError(
                f"kind of factors must be one of {', '.join(sorted(Factors.kinds))}, "
                f"got {told.kind!r}; a kind of your own must be imported before"
            )
        # Products of these kinds do not depend on the dtype of W, and rows are read in float32.
        name = "float32" if told.kind in FAST | NEED_NO_NUMBERS else told.dtype
        return Factors.kinds[told.kind].from_tensors(
            {**self._fixed, **arrays}, told.config, told.shape, _checks.dtype_named(name)
        )


_prepared: dict[int, tuple[weakref.ref[torch.Tensor], Prepared]] = {}


def prepared(tensors: Sequence[torch.Tensor], description: str) -> Prepared:
    """Return what was unpacked of the last of the tensors, from the first call on."""
    fixed = tensors[-1]
    key = id(fixed)
    known = _prepared.get(key)
    if known is not None and known[0]() is fixed and known[1].is_for(tensors, description):
        return known[1]
    made = Prepared(description, fixed)
    if not made.told.trained or len(tensors) != len(made.told.trained) + 1:
        raise RuntimeError(
            f"tensors must be {', '.join(made.told.trained)} and the bytes of what does not train, "
            f"got {len(tensors)} tensors"
        )

    def forget(gone: weakref.ref[torch.Tensor]) -> None:
        if key in _prepared and _prepared[key][0] is gone:
            del _prepared[key]

    _prepared[key] = weakref.ref(fixed, forget), made
    return made


def linear(x: torch.Tensor, tensors: list[torch.Tensor], description: str) -> torch.Tensor:
    """Return ``x @ W.T``, for x of shape (..., in)."""
    return prepared(tensors, description).linear(x, tensors[:-1])


def rows(ids: torch.Tensor, tensors: list[torch.Tensor], description: str) -> torch.Tensor:
    """Return the rows of W with these ids, of shape ids.shape + (in,)."""
    return prepared(tensors, description).rows(ids, tensors[:-1])


def _linear_by_torch(
    x: torch.Tensor, trained: Sequence[torch.Tensor], held: Prepared
) -> torch.Tensor:
    if x.numel() == 0 or 0 in held.told.shape:
        return x.new_zeros(*x.shape[:-1], held.told.shape[0])
    with torch.no_grad():
        y: torch.Tensor = held.factors(trained).forward(XP, held.named(trained), x)
    return y.contiguous()


def _rows_by_torch(
    ids: torch.Tensor, trained: Sequence[torch.Tensor], held: Prepared
) -> torch.Tensor:
    n, columns = held.told.shape
    _check_ids(ids, n)
    if ids.numel() == 0 or columns == 0:
        return trained[0].new_zeros(*ids.shape, columns)
    with torch.no_grad():
        rows: torch.Tensor = held.factors(trained).forward_rows(XP, held.named(trained), ids)
    return rows.contiguous()


def linear_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    description: str,
    wanted: list[bool],
) -> list[torch.Tensor]:
    """Return the wanted gradients of x and the tensors, given that of `linear`."""
    held = prepared(tensors, description)
    with _leaves([x, *tensors], wanted) as (x, *tensors):
        trained = tensors[:-1]
        y = held.factors(trained).forward(XP, held.named(trained), x)
        return _gradients(y, [x, *tensors], gradient)


def rows_gradients(
    gradient: torch.Tensor,
    ids: torch.Tensor,
    tensors: list[torch.Tensor],
    description: str,
    wanted: list[bool],
) -> list[torch.Tensor]:
    """Return the wanted gradients of the tensors, given that of `rows`."""
    held = prepared(tensors, description)
    with _leaves(tensors, wanted) as tensors:
        trained = tensors[:-1]
        found = held.factors(trained).forward_rows(XP, held.named(trained), ids)
        return _gradients(found, tensors, gradient)


def check_linear(x: torch.Tensor, trained: Sequence[torch.Tensor], told: Description) -> None:
    """Refuse inputs as PyTorch's linear layer does."""
    if x.shape[-1:] != told.shape[1:]:
        raise RuntimeError(f"x must have the shape (..., {told.shape[1]}), got {tuple(x.shape)}")
    if x.dtype is not trained[0].dtype:
        raise RuntimeError(
            f"x must have the dtype of the factors, {trained[0].dtype}, got {x.dtype}"
        )


def _check_ids(ids: torch.Tensor, n: int) -> None:
    outside = ids[(ids < 0) | (ids >= n)]
    if outside.numel():
        raise IndexError(f"ids must be in [0, {n}), got {int(outside[0])}")


def _no_product(x: Array, n_threads: int) -> Array:
    raise RuntimeError("factors must be such that kernels can multiply by them, got others")


def _rebuilds_from(factors: Factors) -> int:
    """Return the smallest batch for which rebuilding W takes less time than the kernel."""
    if isinstance(factors, CodebookFactors):
        return CODEBOOK_BATCH
    if isinstance(factors, DictionaryFactors):
        n_atoms, block_size = factors.dictionary.shape
        return DICTIONARY_PRODUCTS * block_size // (factors.shape[1] * n_atoms + 1) + 1
    if isinstance(factors, PruneFactors):
        n_kept = factors.values.size
    else:
        assert isinstance(factors, SharedWeightsFactors)
        n_kept = factors.sparse_codes.codes.size
    share = n_kept / (factors.shape[0] * factors.shape[1] + 1) - DENSE_SHARE
    return int(REBUILD_COST / share) + 1 if share > 0 else sys.maxsize


def _is_slow_look_up(factors: Factors, n_rows: int) -> bool:
    if not isinstance(factors, DictionaryFactors):
        return False
    return factors.dictionary.shape[1] < SHORT_BLOCK and FEW_ROWS < n_rows < factors.shape[0]


@contextmanager
def _leaves(
    tensors: Sequence[torch.Tensor], wanted: Sequence[bool]
) -> Iterator[list[torch.Tensor]]:
    """Give the tensors as they are where no gradient is wanted, and else copies that get one.

    Gradients are recorded, also where a mode of PyTorch such as a counter of operations called the
    operator behind the part of the dispatcher that does so.
    """
    key = torch._C.DispatchKey.AutogradFunctionality
    with torch._C._SetExcludeDispatchKeyGuard(key, False), torch.enable_grad():
        yield [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]


def _gradients(
    y: torch.Tensor, leaves: Sequence[torch.Tensor], gradient: torch.Tensor
) -> list[torch.Tensor]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [g.contiguous() for g in torch.autograd.grad(y, wanted, gradient)]
