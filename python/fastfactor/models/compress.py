"""Compress a checkpoint by a recipe into one file, and decompress it, one tensor at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import CorruptDataError
from ..files.checkpoint import Stored, open_checkpoint
from ..files.disk import check_output_path
from ..files.index import PLAIN, Entry, Path
from ..files.side_files import check_sources
from ..files.store import Store, open_store
from ..files.writer import Writer, unfinished_job
from ..kernels.runtime import thread_count
from ..methods.factors import Factors
from .notes import notes_on
from .plan import Job, fingerprint
from .recipe import read_recipe
from .report import Report, TensorRow
from .rules import KEEP

Progress = Callable[[str, int, int], None]

MAX_NBYTES = 2**63  # more than any tensor has
REOPEN_BYTES = 64 << 20  # bytes to read of a compressed file before its memory is freed


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
    note: Callable[[str], None] | None = None,
    n_threads: int | None = None,
) -> Report:
    """Compress a model on disk, one tensor at a time.

    Parameters
    ----------
    source : path
        A safetensors file, an index of shards (``….safetensors.index.json``), a folder with one of
        these, an ``.npz`` or ``.npy`` file, or tensors from ``torch.save`` (PyTorch is not needed).
    target : path
        The safetensors file to write, to be read by :func:`fastfactor.store.open_store`. An
        existing file is replaced once the new one is complete.
    recipe : path, mapping or Recipe
        How each tensor is compressed: see :mod:`fastfactor.models.recipe`.
    importance : path, optional
        A file of the kinds that a source may have, with tensors of the same names and shapes as the
        model's: the weight of each squared error (squared gradients, Fisher information). The
        weighted sum is minimised and reported; tensors that are not in the file use the plain sum
        of squares.
    input_covariance : path, optional
        A file of the same kinds that holds, by the name of each layer's weight, the mean of x xᵀ
        over the layer's inputs x: a matrix of shape (n, n) where n is in_features, or for a
        convolution the product of shape[1:]. A tensor may be in one of the two files, not in both.
        Names that the model does not have are errors.
    dry_run : bool
        Report what would be done without doing it. Sizes are computed from shapes and settings by
        :meth:`fastfactor.methods.Method.planned_size`, exactly or as bounds. Values are read once,
        to find those that are not finite.
    resume : bool
        Continue an earlier run to this target that was interrupted or killed, and keep the finished
        tensors if this one is. After a change of the recipe, tensors whose own settings are the
        same are taken up and the others compressed anew.
    compact : bool
        Write the compact form, which makes small files smaller: see :func:`fastfactor.store.save`.
    progress : callable, optional
        Called as ``progress(name, done, total)`` before each tensor, and once at the end with an
        empty name; ``done`` and ``total`` are bytes of the source.
    note : callable, optional
        Called before any work with each of the report's ``notes``: patterns that match no tensor,
        and tables that take more bytes than the codes.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    Report
        A row for every tensor: its method, its size and its error, or why it was not compressed.

    Raises
    ------
    TypeError, ValueError
        For an invalid recipe, names in it that the model does not have, a tensor that its method
        cannot compress (unless the recipe keeps such tensors), an importance or covariance of the
        wrong shape, a target that is also a source, or a ``resume`` with another source.
        Whatever follows from shapes and settings is checked before any work, and so is that all
        values are finite.
    CorruptDataError
        If the source contradicts itself.
    OSError
        If files cannot be read or written.

    Notes
    -----
    Floating-point tensors with two axes or more are compressed, as matrices: which axes are outputs
    is told by names, shapes and biases, or by the recipe's ``layout``. All other tensors are copied
    without loss, and so are those that would not become smaller, and all tensors of layers that
    another library has quantized. One tensor is in memory at a time, so the peak is about the
    bytes of the largest tensor and the working memory of its method. Until the target is complete,
    its data are in ``target.partial`` and ``target.journal``, and an existing target is unchanged.
    The same model and recipe give the same bytes, resumed or not, as far as the methods promise it.

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
    notes = notes_on(job)
    if note is not None:
        for text in notes:
            note(text)
    rows = [job.planned(name, check_values=dry_run) for name in job.plan]
    if not dry_run:
        if job.recipe.if_impossible == "stop":
            job.check_values()
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
        notes=tuple(notes),
    )


def decompress_file(
    source: Path,
    target: Path,
    *,
    resume: bool = False,
    max_dense_nbytes: int | None = None,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> Report:
    """Rebuild every tensor of a compressed file, in its shape and dtype.

    Parameters
    ----------
    source : path
        A file from :func:`compress_file` or :func:`fastfactor.store.save`.
    target : path
        The safetensors file of plain tensors to write. An existing file is replaced once the new
        one is complete.
    resume : bool
        As for :func:`compress_file`.
    max_dense_nbytes : int, optional
        The most bytes of all compressed tensors together when rebuilt; a source that has more is
        refused before any work. A side of length 0 counts as 1. Default: 1 GiB, and 4096 bytes more
        for each byte of the source.
    progress : callable, optional
        As for :func:`compress_file`, in bytes of the target.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    Report
        A row for every tensor, with its kind and its size in both files.

    Raises
    ------
    CorruptDataError
        If the source is damaged. No target is written then.
    TypeError, ValueError
        For a target that is the source, a ``resume`` with another source, or a file that a newer
        version of fastfactor wrote.
    OSError
        If files cannot be read or written.

    Notes
    -----
    One tensor is in memory at a time; the peak is about twice the bytes of the largest. Compression
    loses precision, so the tensors are approximations of the original ones. The bytes are the same
    for any number of threads, as far as the methods promise it.

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
    with open_store(source, max_dense_nbytes=max_dense_nbytes) as store:
        entries = {name: store.info(name) for name in store}
        metadata, limit = store.metadata, store.max_dense_nbytes
    factored = (entry for entry in entries.values() if entry.kind != "plain")
    total = sum(entry.counted_dense_nbytes for entry in factored)
    if total > limit:
        raise CorruptDataError(
            f"max_dense_nbytes must be at least {total} for the tensors of {os.fspath(source)}, a "
            f"file of {os.path.getsize(source)} bytes, got {limit}; give a larger one if you trust "
            "the file"
        )
    rows = {name: _rebuilt_row(entry) for name, entry in entries.items()}
    job = fingerprint("decompress", [[os.fspath(source)]])
    with _writer(target, metadata, resume, job) as writer:
        taken_up = _taken_up(writer, entries)
        sizes = [row.bytes_after or 0 for row in rows.values()]
        names = _with_progress(list(rows), sizes, progress)
        left = (entries[name] for name in names if name not in taken_up)
        before = time.perf_counter()
        for entry, store in _entries(source, left, max_dense_nbytes=limit):
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
    metadata, job_text = job.checkpoint.metadata, job.source_fingerprint()
    with _writer(target, metadata, resume, job_text, compact=compact) as writer:
        taken_up = _taken_up(writer, tensors)
        for name in sorted(taken_up):
            if name in writer and not _is_current(writer, job, name):
                writer.discard(name)
        taken_up = set(writer)
        sizes = [stored.nbytes for stored in tensors.values()]
        for name in _with_progress(list(tensors), sizes, progress):
            if name in taken_up:
                continue
            if name in job.ties:
                writer.add_same(name, job.ties[name], key=job.fingerprint(name, kept=False))
                rows[name] = job.planned(name)
            else:
                rows[name] = _add(writer, job, name)
        writer.arrange(tensors)
    if taken_up:
        with open_store(target) as store:
            earlier = [store.info(name) for name in tensors if name in taken_up]
        # As large as the tensors of the source, which are dense.
        for entry, store in _entries(target, earlier, max_dense_nbytes=MAX_NBYTES):
            rows[entry.name] = job.done_before(entry, store[entry.name])
    return [rows[name] for name in tensors]


def _is_current(writer: Writer, job: Job, name: str) -> bool:
    """Return whether a resumed entry is as this job would write it."""
    entry = writer.info(name)
    if writer.keys[name] not in (job.fingerprint(name, kept=kept) for kept in (False, True)):
        return False
    if entry.kind == PLAIN or entry.same_as is not None:
        return True
    return entry.layout == job.plan[name].layout


def _add(writer: Writer, job: Job, name: str) -> TensorRow:
    """Compress or copy a tensor into the file; return its row."""
    value, row = job.done(name)
    if isinstance(value, Factors):
        key = job.fingerprint(name, kept=False)
        writer.add(name, value, shape=job.plan[name].layout, key=key)
    else:
        dtype = job.checkpoint.tensors[name].dtype
        writer.add(name, value, dtype=dtype, key=job.fingerprint(name, kept=True))
    return row


def _writer(
    target: Path, metadata: dict[str, str], resume: bool, job: str, *, compact: bool = False
) -> Writer:
    if resume and unfinished_job(target) not in (None, job):
        raise ValueError(
            f"resume must have the source that {os.fspath(target)}.journal began with, got another "
            "one or other weights of errors; leave resume out to start again"
        )
    return Writer(target, metadata=metadata, resume=resume, job=job, compact=compact)


def _taken_up(writer: Writer, source: Mapping[str, Stored | Entry]) -> set[str]:
    """Return the names of the entries that a writer resumed; refuse others than the source's."""
    for name in writer:
        entry, known = writer.info(name), source.get(name)
        if known is None or (entry.shape, entry.dtype) != (known.shape, known.dtype):
            raise CorruptDataError(
                f"{writer.path}.journal must only have tensors of the source, got {name!r} of "
                f"shape {list(entry.shape)} and dtype {entry.dtype}; leave resume out to start "
                "again"
            )
    return set(writer)


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
        bytes_after=entry.dense_nbytes,
        relative_error=None,
        seconds=None,
    )


def _entries(
    path: Path, entries: Iterable[Entry], *, max_dense_nbytes: int | None = None
) -> Iterator[tuple[Entry, Store]]:
    """Iterate over entries, each with an open store, which is reopened from time to time.

    Mapped pages that were read count as memory of this process until the store is closed.
    """
    store, read = open_store(path, max_dense_nbytes=max_dense_nbytes), 0
    try:
        for entry in entries:
            if read > REOPEN_BYTES:
                store.close()
                store, read = open_store(path, max_dense_nbytes=max_dense_nbytes), 0
            yield entry, store
            read += entry.nbytes
    finally:
        store.close()


def _with_progress(names: list[str], sizes: list[int], progress: Progress | None) -> Iterator[str]:
    """Iterate over names and report progress before each one."""
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
    check_sources(target, sources)
    check_output_path(target)
