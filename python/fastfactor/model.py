"""Whole models: a checkpoint and a recipe in, one compressed file out, a tensor at a time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from . import _checks
from ._checks import Array
from .checkpoint import Checkpoint, Stored, open_checkpoint
from .comparison import difference
from .container import CODES, dtype_of
from .methods.base import Factors
from .metrics import Diagonal
from .recipe import KEEP, Recipe, Rule, located, read_recipe
from .report import Report, TensorRow
from .store import Entry, Store, Writer, open_store
from .store_index import Path, Value
from .store_writer import left_behind

Progress = Callable[[str, int, int], None]

REOPEN_BYTES = 64 << 20  # of a compressed file, until its pages are given back


def compress_file(
    source: Path,
    target: Path,
    recipe: Any,
    *,
    importance: Path | None = None,
    dry_run: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> Report:
    """Compress a model on disk, tensor by tensor.

    Parameters
    ----------
    source : path
        A safetensors file, an index of shards (``….safetensors.index.json``), a folder with either,
        or an ``.npz``.
    target : path
        A safetensors file with factors in it, for :func:`fastfactor.store.open_store`; one that is
        there is replaced when the new one is whole.
    recipe : path, mapping or Recipe
        What is done to which tensor: see :mod:`fastfactor.recipe`.
    importance : path, optional
        A model of the same names and shapes, not compressed: what the squared error of each weight
        counts (squared gradients, Fisher information). It is minimised, and errors are under it.
    dry_run : bool
        Say what would be done, and do nothing.
    resume : bool
        Go on where an earlier run to this target ended, be it killed, and leave what is done if
        this one ends early.
    progress : callable, optional
        Called as ``progress(name, done, total)`` before each tensor and once at the end, with an
        empty name; in bytes of the source.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    Report
        A row for every tensor: what it became, its size, its error, and why if it was kept.

    Raises
    ------
    TypeError, ValueError
        For a recipe that cannot be, names in it that the model has not, a tensor that its method
        cannot compress (unless the recipe says to keep it), a target that is the source, and a
        ``resume`` with another recipe or source.
    CorruptDataError
        Where the source contradicts itself.
    OSError
        Where files cannot be read or written.

    Notes
    -----
    Matrices of floats are compressed, tensors of more dimensions as (shape[0], all else); all else
    is copied without loss, and so is what would not become smaller. Tensors are mapped into memory
    one at a time, so that it takes about the largest tensor's bytes and what its method needs;
    those of an .npz are read whole. The target is ``target.partial`` and ``target.journal`` until
    it is whole: at every moment of a kill the old file stays as it is. The same bytes for the same
    model and recipe, resumed or not, as far as the methods promise that.

    Examples
    --------
    >>> import tempfile, numpy as np, fastfactor
    >>> rng = np.random.default_rng(0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/net.npz", fc=rng.random((64, 64), np.float32), bias=np.zeros(64))
    ...     report = fastfactor.compress_file(
    ...         folder + "/net.npz",
    ...         folder + "/net.safetensors",
    ...         {"default": {"method": "codebook", "n_bits": 4}},
    ...     )
    >>> [(row.name, row.method, row.bytes_before, row.bytes_after) for row in report.rows]
    [('fc', 'codebook', 16384, 2112), ('bias', 'keep', 512, 512)]
    """
    start = time.perf_counter()
    _checks.threads(n_threads)
    rules = read_recipe(recipe)
    checkpoint = open_checkpoint(source)
    rules.check_names(checkpoint)
    _check_target(target, checkpoint.files)
    plan = [
        (name, stored, *rules.decide(name, stored.shape, is_float=stored.is_float))
        for name, stored in checkpoint.tensors.items()
    ]
    weights = None if importance is None else open_checkpoint(importance)
    for name, _, rule, _ in plan:
        if weights is not None and rule.compressor is not None and name not in weights:
            raise ValueError(
                f"importance must hold every tensor that is compressed, got none for {name!r}"
            )
    if dry_run:
        rows = [_planned(name, stored, rule, reason) for name, stored, rule, reason in plan]
    else:
        files = (*checkpoint.files, *(weights.files if weights is not None else ()))
        job = _job(rules, files)
        if resume and left_behind(target) not in (None, job):
            raise ValueError(
                f"resume must go on with the recipe and source that {os.fspath(target)}.journal "
                "began with, got others; without resume it begins anew"
            )
        rows = []
        with Writer(target, metadata=checkpoint.metadata, resume=resume, job=job) as writer:
            taken_up = set(writer)
            work = _with_progress(plan, [stored.nbytes for _, stored, _, _ in plan], progress)
            for name, stored, rule, reason in work:
                if name in taken_up:
                    continue
                W = checkpoint[name]
                weighing = weights if rule.compressor is not None else None
                value, row = _compressed(name, W, rule, reason, rules, weighing, n_threads)
                is_factors = isinstance(value, Factors)
                writer.add(name, value, shape=stored.shape if is_factors else None)
                rows.append(row)
                del W, value
        if taken_up:
            rows = _with_earlier(rows, taken_up, plan, checkpoint, weights, target, n_threads)
    return Report(
        task="compress",
        source=os.fspath(source),
        target=os.fspath(target),
        rows=tuple(rows),
        file_bytes_before=checkpoint.file_nbytes,
        file_bytes_after=None if dry_run else os.path.getsize(target),
        seconds=time.perf_counter() - start,
        dry_run=bool(dry_run),
    )


def decompress_file(
    source: Path,
    target: Path,
    *,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> Report:
    """Rebuild every tensor of a compressed file, in its shape and dtype.

    Parameters
    ----------
    source : path
        What :func:`compress_file` wrote.
    target : path
        A safetensors file of plain tensors; one that is there is replaced when the new one is
        whole.
    progress : callable, optional
        As for :func:`compress_file`, in bytes of what is written.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    Report
        A row for every tensor, with its kind and both sizes.

    Raises
    ------
    CorruptDataError
        Where the source was damaged; nothing is left of the target then.
    TypeError, ValueError
        For a target that is the source, and a file that a newer version wrote.
    OSError
        Where files cannot be read or written.

    Notes
    -----
    One tensor at a time: it takes about the largest tensor's bytes, twice. The tensors are those
    that the compressed form stands for, not those that it was made from. The same bytes for any
    number of threads, as far as the methods promise that.

    Examples
    --------
    >>> import tempfile, numpy as np, fastfactor
    >>> from fastfactor import store
    >>> from fastfactor.methods import LowRank
    >>> W = np.outer([1, 2, 3], [1, 0, -1, 2]).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     small, large = folder + "/small.safetensors", folder + "/large.safetensors"
    ...     store.save(small, {"fc": LowRank(rank=1).compress(W)})
    ...     report = fastfactor.decompress_file(small, large)
    ...     print(np.allclose(store.open_store(large)["fc"], W), report.rows[0].bytes_after)
    True 48
    """
    start = time.perf_counter()
    _checks.threads(n_threads)
    _check_target(target, (os.fspath(source),))
    with open_store(source) as store:
        entries = [store.info(name) for name in store]
        metadata, file_bytes = store.metadata, store.file_nbytes
    rows = []
    with Writer(target, metadata=metadata) as writer:
        sizes = [Stored(entry.shape, entry.dtype).nbytes for entry in entries]
        for entry, store in _entries(source, _with_progress(entries, sizes, progress)):
            before = time.perf_counter()
            dense = store.to_dense(entry.name, n_threads=n_threads)
            writer.add(entry.name, dense)
            plain = entry.kind == "plain"
            rows.append(
                TensorRow(
                    name=entry.name,
                    shape=entry.shape,
                    dtype=entry.dtype.name,
                    method=KEEP if plain else entry.kind,
                    settings={},
                    reason="plain" if plain else "",
                    bytes_before=entry.nbytes,
                    bytes_after=dense.nbytes,
                    relative_error=None,
                    seconds=time.perf_counter() - before,
                )
            )
    return Report(
        task="decompress",
        source=os.fspath(source),
        target=os.fspath(target),
        rows=tuple(rows),
        file_bytes_before=file_bytes,
        file_bytes_after=os.path.getsize(target),
        seconds=time.perf_counter() - start,
        dry_run=False,
    )


def _compressed(
    name: str,
    W: Array,
    rule: Rule,
    reason: str,
    recipe: Recipe,
    weights: Checkpoint | None,
    n_threads: int | None,
) -> tuple[Value, TensorRow]:
    """What is stored for a tensor, and the report's row."""
    before = time.perf_counter()
    value: Value = W
    error = None
    try:
        if rule.compressor is not None:
            weight = None if weights is None else _as_matrix(weights[name])
            factors = rule.compressor.compress(
                _as_matrix(W), importance=weight, n_threads=n_threads
            )
            if factors.nbytes < W.nbytes:
                value = factors
                error = _error(W, factors, weight, n_threads)
            else:
                reason = f"not smaller as {rule.method}: {factors.nbytes} bytes"
        elif rule.dtype not in (None, W.dtype.name):
            value, error = _converted(W, rule.dtype)
    except (TypeError, ValueError) as fault:
        if recipe.if_impossible == "stop":
            raise located(fault, f"tensor {name!r}") from fault
        reason = f"impossible: {fault}"
    row = TensorRow(
        name=name,
        shape=W.shape,
        dtype=W.dtype.name,
        method=KEEP if reason else rule.method,
        settings={} if reason else rule.settings,
        reason=reason,
        bytes_before=W.nbytes,
        bytes_after=value.nbytes,
        relative_error=error,
        seconds=time.perf_counter() - before,
    )
    return value, row


def _error(W: Array, factors: Factors, weight: Array | None, n_threads: int | None) -> float:
    metric = None if weight is None else Diagonal(weight)
    return factors.error(_as_matrix(W), metric=metric, n_threads=n_threads)


def _as_matrix(array: Array) -> Array:
    """A tensor as methods see it; what is none stays."""
    return array.reshape(array.shape[0], -1) if array.ndim > 1 else array


def _converted(W: Array, name: str) -> tuple[Array, float]:
    dtype = dtype_of(CODES[name])
    with np.errstate(over="ignore"):
        converted = W.astype(dtype)
    if not np.array_equal(np.isfinite(converted), np.isfinite(W)):
        raise ValueError(f"its values must be in the range of {name}, got larger ones")
    return converted, difference(W, converted).relative_error


def _planned(name: str, stored: Stored, rule: Rule, reason: str) -> TensorRow:
    known = rule.compressor is None and rule.dtype in (None, stored.dtype.name)
    return TensorRow(
        name=name,
        shape=stored.shape,
        dtype=stored.dtype.name,
        method=KEEP if reason else rule.method,
        settings={} if reason else rule.settings,
        reason=reason,
        bytes_before=stored.nbytes,
        bytes_after=stored.nbytes if known else None,
        relative_error=None,
        seconds=None,
    )


def _with_earlier(
    rows: list[TensorRow],
    taken_up: set[str],
    plan: list[tuple[str, Stored, Rule, str]],
    checkpoint: Checkpoint,
    weights: Checkpoint | None,
    target: Path,
    n_threads: int | None,
) -> list[TensorRow]:
    """All rows in order, with those that an earlier run wrote, as the file has them."""
    by_name = {row.name: row for row in rows}
    planned = {name: _planned(name, stored, rule, why) for name, stored, rule, why in plan}
    with open_store(target) as store:
        entries = [store.info(name) for name in planned if name in taken_up]
    for entry, store in _entries(target, entries):
        row, value = planned[entry.name], store[entry.name]
        error = None
        if isinstance(value, Factors):
            weight = None if weights is None else _as_matrix(weights[entry.name])
            error = _error(checkpoint[entry.name], value, weight, n_threads)
        elif entry.dtype.name != row.dtype:
            error = difference(checkpoint[entry.name], value).relative_error
        elif not row.reason:
            row = replace(row, method=KEEP, settings={}, reason="left so by the earlier run")
        by_name[entry.name] = replace(row, bytes_after=entry.nbytes, relative_error=error)
    return [by_name[name] for name in planned]


def _entries(path: Path, entries: Any) -> Iterator[tuple[Entry, Store]]:
    """Each entry with an open store, which is opened anew from time to time.

    What is mapped counts as this process' memory until it is let go.
    """
    store, read = open_store(path), 0
    try:
        for entry in entries:
            if read > REOPEN_BYTES:
                store.close()
                store, read = open_store(path), 0
            yield entry, store
            read += entry.nbytes
    finally:
        store.close()


def _with_progress(items: Any, sizes: list[int], progress: Progress | None) -> Iterator[Any]:
    """The items, with word of each before it."""
    total, done = sum(sizes), 0
    for item, size in zip(items, sizes, strict=True):
        if progress is not None:
            progress(item.name if isinstance(item, Entry) else item[0], done, total)
        yield item
        done += size
    if progress is not None:
        progress("", done, total)


def _check_target(target: Path, sources: tuple[str, ...]) -> None:
    ending = os.path.splitext(os.fspath(target))[1]
    if ending in (".npz", ".json", ".toml"):
        raise ValueError(f"target must be a safetensors file, got {os.fspath(target)!r}")
    for source in sources:
        if os.path.realpath(source) == os.path.realpath(target):
            raise ValueError(f"target must not be the source, got {os.fspath(target)!r} for both")


def _job(recipe: Recipe, files: tuple[str, ...]) -> str:
    """What must be the same for a run to go on where another ended."""
    found = [recipe.fingerprint()]
    for file in files:
        status = os.stat(file)
        found.append(f"{os.path.basename(file)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
