"""Whole models: a checkpoint and a recipe in, one compressed file out, a tensor at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..files.checkpoint import Stored, open_checkpoint
from ..files.container import check_output_path
from ..files.index import Entry, Path
from ..files.store import Store, open_store
from ..files.writer import Writer, unfinished_job
from ..kernels.runtime import thread_count
from ..methods.factors import Factors
from .plan import Job, fingerprint
from .recipe import KEEP, read_recipe
from .report import Report, TensorRow

Progress = Callable[[str, int, int], None]

REOPEN_BYTES = 64 << 20  # of a compressed file, until its pages are given back


def compress_file(
    source: Path,
    target: Path,
    recipe: Any,
    *,
    importance: Path | None = None,
    input_covariance: Path | None = None,
    dry_run: bool = False,
    resume: bool = False,
    compact: bool = False,
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
        What is done to which tensor: see :mod:`fastfactor.models.recipe`.
    importance : path, optional
        A file as a source may be, with tensors of the same names and shapes: what the squared error
        of each weight counts (squared gradients, Fisher information). That is minimised, and errors
        are under it; for tensors that it has not, under the plain sum of squares.
    input_covariance : path, optional
        Likewise, with the mean of x xᵀ over the inputs of each layer by the name of its weight,
        (in_features, in_features), for a convolution (all but shape[0], squared). A tensor may have
        one of the two, others in the file than the model's are refused.
    dry_run : bool
        Say what would be done, and do nothing. Sizes are those of the method's settings, or bounds,
        as :meth:`fastfactor.methods.Method.planned_size` knows them; no value is looked at.
    resume : bool
        Go on where an earlier run to this target ended, be it killed, and leave what is done if
        this one ends early.
    compact : bool
        Keep the file of a small model small, as :func:`fastfactor.store.save` does.
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
        cannot compress (unless the recipe says to keep it), importances and covariances that do not
        fit, a target that is the source, and a ``resume`` with another recipe or source. What
        shapes and settings tell is said before any work.
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
    thread_count(n_threads)
    job = Job(
        recipe=read_recipe(recipe),
        checkpoint=open_checkpoint(source),
        importance=None if importance is None else open_checkpoint(importance),
        input_covariance=None if input_covariance is None else open_checkpoint(input_covariance),
        n_threads=n_threads,
    )
    read = (job.checkpoint, job.importance, job.input_covariance)
    _check_target(target, tuple(file for model in read if model for file in model.files))
    rows = [job.planned(name) for name in job.plan]
    if not dry_run:
        rows = _compress(job, target, resume=resume, compact=compact, progress=progress)
    return Report(
        task="compress",
        source=os.fspath(source),
        target=os.fspath(target),
        rows=tuple(rows),
        file_bytes_before=job.checkpoint.file_nbytes,
        file_bytes_after=None if dry_run else os.path.getsize(target),
        seconds=time.perf_counter() - start,
        dry_run=bool(dry_run),
        importance=None if importance is None else os.fspath(importance),
        input_covariance=None if input_covariance is None else os.fspath(input_covariance),
    )


def decompress_file(
    source: Path,
    target: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> Report:
    """Rebuild every tensor of a compressed file, in its shape and dtype.

    Parameters
    ----------
    source : path
        What :func:`compress_file` or :func:`fastfactor.store.save` wrote.
    target : path
        A safetensors file of plain tensors; one that is there is replaced when the new one is
        whole.
    resume : bool
        As for :func:`compress_file`.
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
        For a target that is the source, a ``resume`` with another source, and a file that a newer
        version wrote.
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
    thread_count(n_threads)
    _check_target(target, (os.fspath(source),))
    with open_store(source) as store:
        entries = {name: store.info(name) for name in store}
        metadata = store.metadata
    rows = {name: _rebuilt_row(entry) for name, entry in entries.items()}
    job = fingerprint("decompress", [[os.fspath(source)]])
    with _writer(target, metadata, resume, job) as writer:
        taken_up = set(writer)
        sizes = [row.bytes_after or 0 for row in rows.values()]
        names = _with_progress(list(rows), sizes, progress)
        left = (entries[name] for name in names if name not in taken_up)
        before = time.perf_counter()
        for entry, store in _entries(source, left):
            writer.add(entry.name, store.to_dense(entry.name, n_threads=n_threads))
            now = time.perf_counter()
            rows[entry.name] = replace(rows[entry.name], seconds=now - before)
            before = now
    return Report(
        task="decompress",
        source=os.fspath(source),
        target=os.fspath(target),
        rows=tuple(rows.values()),
        file_bytes_before=os.path.getsize(source),
        file_bytes_after=os.path.getsize(target),
        seconds=time.perf_counter() - start,
        dry_run=False,
    )


def _compress(
    job: Job, target: Path, *, resume: bool, compact: bool, progress: Progress | None
) -> list[TensorRow]:
    rows = {}
    tensors = job.checkpoint.tensors
    metadata, job_text = job.checkpoint.metadata, job.fingerprint()
    with _writer(target, metadata, resume, job_text, compact=compact) as writer:
        taken_up = set(writer)
        sizes = [stored.nbytes for stored in tensors.values()]
        for name in _with_progress(list(tensors), sizes, progress):
            if name not in taken_up:
                value, rows[name] = job.done(name)
                factored = isinstance(value, Factors)
                writer.add(name, value, shape=tensors[name].shape if factored else None)
                del value  # before the next one is read
    if taken_up:
        with open_store(target) as store:
            earlier = [store.info(name) for name in tensors if name in taken_up]
        for entry, store in _entries(target, earlier):
            rows[entry.name] = job.done_before(entry, store[entry.name])
    return [rows[name] for name in tensors]


def _writer(
    target: Path, metadata: dict[str, str], resume: bool, job: str, *, compact: bool = False
) -> Writer:
    if resume and unfinished_job(target) not in (None, job):
        raise ValueError(
            f"resume must go on with the source and settings that {os.fspath(target)}.journal "
            "began with, got others; without resume it begins anew"
        )
    return Writer(target, metadata=metadata, resume=resume, job=job, compact=compact)


def _rebuilt_row(entry: Entry) -> TensorRow:
    plain = entry.kind == "plain"
    return TensorRow(
        name=entry.name,
        shape=entry.shape,
        dtype=entry.dtype.name,
        method=KEEP if plain else entry.kind,
        settings={},
        reason="plain" if plain else "",
        bytes_before=entry.nbytes,
        bytes_after=Stored(entry.shape, entry.dtype).nbytes,
        relative_error=None,
        seconds=None,
    )


def _entries(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Store]]:
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


def _with_progress(names: list[str], sizes: list[int], progress: Progress | None) -> Iterator[str]:
    """The names, with word of each before it."""
    total, done = sum(sizes), 0
    for name, size in zip(names, sizes, strict=True):
        if progress is not None:
            progress(name, done, total)
        yield name
        done += size
    if progress is not None:
        progress("", done, total)


def _check_target(target: Path, sources: tuple[str, ...]) -> None:
    ending = os.path.splitext(os.fspath(target))[1]
    if ending in (".npz", ".json", ".toml"):
        raise ValueError(f"target must be a safetensors file, got {os.fspath(target)!r}")
    for source in sources:
        if os.path.realpath(source) == os.path.realpath(target):
            raise ValueError(f"target must not be a source, got {os.fspath(target)!r} for both")
    check_output_path(target)
