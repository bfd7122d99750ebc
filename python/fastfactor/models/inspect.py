"""List the tensors of a file, compressed or not, from its header alone."""

from __future__ import annotations

import math
import os
from typing import Any

from ..errors import CorruptDataError
from ..files.checkpoint import Checkpoint
from ..files.index import PLAIN, Path
from ..files.layout import Layout
from ..files.store import Store
from ..methods.factors import Factors
from .compare import open_tensors
from .layouts import Layouts, layout_text
from .quantized import quantized_layers, quantized_text
from .report import Table
from .ties import equal_tensors, tie_text


def inspect_file(path: Path, *, verify: bool = False, max_dense_nbytes: int | None = None) -> Table:
    """List the tensors of a file: kind, shape, dtype, size and how each is stored.

    Parameters
    ----------
    path : path
        A compressed file, or a model as :func:`fastfactor.compress_file` reads it.
    verify : bool
        Also read all data and check the checksums, that factors fit together and that encoded data
        can be decoded. This takes about as long as one product with each matrix.
    max_dense_nbytes : int, optional
        With ``verify``: the most bytes that the dense form of a compressed tensor may have, as for
        :func:`fastfactor.store.open_store`.

    Returns
    -------
    Table
        One row for each tensor.

    Raises
    ------
    CorruptDataError
        If damage was found in what was read.
    ValueError
        If a newer version of fastfactor wrote the file.
    OSError
        If it cannot be read.
    """
    model = open_tensors(path, max_dense_nbytes)
    if isinstance(model, Store):
        with model as store:
            if verify:
                _verify(store)
            records = [_entry_record(store, name) for name in store]
            file_nbytes = store.file_nbytes
    else:
        if verify:
            for name in model:
                model[name]
        seen_as = _seen_as(model)
        records = [
            _record(name, "plain", s.shape, s.dtype.name, s.nbytes, {}, seen_as[name])
            for name, s in model.tensors.items()
        ]
        file_nbytes = model.file_nbytes
    n_weights = sum(math.prod(record["shape"]) for record in records)
    nbytes = sum(record["bytes"] for record in records)
    compressed = sum(record["kind"] != "plain" for record in records)
    totals = {
        "path": os.fspath(path),
        "n_tensors": len(records),
        "n_compressed": compressed,
        "n_weights": n_weights,
        "bytes": nbytes,
        "file_bytes": file_nbytes,
        "bits_per_weight": 8 * nbytes / n_weights if n_weights else None,
        "verified": verify,
    }
    columns = {
        "name": "tensor",
        "kind": "kind",
        "shape": "shape",
        "dtype": "dtype",
        "seen_as": "as",
        "bytes": "bytes",
        "bits_per_weight": "bits",
        "config": "stored with",
    }
    if not compressed:
        del columns["config"]
    if all(_is_obvious(record) for record in records):
        del columns["seen_as"]
    summary = (
        f"{len(records)} tensor{'' if len(records) == 1 else 's'}, {compressed} compressed; "
        f"{n_weights:,} weights in {file_nbytes:,} bytes{'; verified' if verify else ''}"
    )
    return Table(os.fspath(path), records, columns, totals, summary)


def _verify(store: Store) -> None:
    for name in store:
        value = store[name]
        if isinstance(value, Factors):
            try:
                value.verify()
            except CorruptDataError as error:
                raise CorruptDataError(f"entry {name!r}: {error}") from error
        store.release()


def _entry_record(store: Store, name: str) -> dict[str, Any]:
    entry = store.info(name)
    seen_as = "" if entry.kind == PLAIN else layout_text(entry.layout)
    config = entry.config if entry.same_as is None else {"same_as": entry.same_as}
    described = entry.kind, entry.shape, entry.dtype.name, entry.nbytes, config
    return _record(name, *described, seen_as)


def _seen_as(model: Checkpoint) -> dict[str, str]:
    """Return what `compress_file` takes each tensor for: the matrix, or why it is none."""
    tensors, ties = model.tensors, equal_tensors(model)
    codes, layouts = quantized_layers(tensors), Layouts(tensors)
    found = {}
    for name, stored in tensors.items():
        if name in codes:
            found[name] = quantized_text(name, codes[name])
        elif name in ties:
            found[name] = tie_text(ties[name])
        elif stored.is_float and len(stored.shape) > 1:
            found[name] = layout_text(layouts.find(name))
        else:
            found[name] = ""
    return found


def _is_obvious(record: dict[str, Any]) -> bool:
    """Return whether a tensor is a matrix as it is, or none at all."""
    if not record["seen_as"]:
        return True
    shape = tuple(record["shape"])
    return len(shape) == 2 and record["seen_as"] == layout_text(Layout.of(shape))


def _record(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    dtype: str,
    nbytes: int,
    config: dict[str, Any],
    seen_as: str,
) -> dict[str, Any]:
    size = math.prod(shape)
    return {
        "name": name,
        "kind": kind,
        "shape": list(shape),
        "dtype": dtype,
        "seen_as": seen_as,
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / size if size else None,
        "config": config,
    }
