"""What is in a file of tensors, compressed or not, from its header alone."""

from __future__ import annotations

import math
import os
from typing import Any

from ..deep_compression import CodedNetwork
from ..errors import CorruptDataError
from ..files.checkpoint import is_coded_network
from ..files.index import Path
from ..files.store import Store
from ..methods.factors import Factors
from .compare import open_tensors
from .report import Table


def inspect_file(path: Path, *, verify: bool = False) -> Table:
    """A row for each tensor: its kind, shape, dtype, size and how it is stored.

    For a Deep Compression network, a row for each layer with the columns of the paper's tables.

    Parameters
    ----------
    path : path
        A compressed file, or a model as :func:`fastfactor.compress_file` reads it.
    verify : bool
        Read everything and check what can be checked: checksums, that factors fit together, and
        that what they keep encoded can be decoded, which takes as long as a product.

    Returns
    -------
    Table

    Raises
    ------
    CorruptDataError
        Where the file was damaged, as far as was read.
    ValueError
        For a file that a newer version wrote.
    OSError
        Where it cannot be read.
    """
    if is_coded_network(path):
        return _network_table(path)
    model = open_tensors(path)
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
        records = [
            _record(name, "plain", s.shape, s.dtype.name, s.nbytes, {})
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
        "bytes": "bytes",
        "bits_per_weight": "bits",
        "config": "stored with",
    }
    if not compressed:
        del columns["config"]
    summary = (
        f"{len(records)} tensors, {compressed} compressed; {n_weights:,} weights in "
        f"{file_nbytes:,} bytes{'; verified' if verify else ''}"
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


def _network_table(path: Path) -> Table:
    network = CodedNetwork.load(path)
    rows = network.rows()
    names = list(dict.fromkeys(name for row in rows for name in row))
    records = [{name: row.get(name) for name in names} for row in rows]
    headings = {
        "name": "layer",
        "weights": "weights",
        "kept": "kept",
        "code_bits": "bits",
        "code_bits_coded": "coded",
        "gap_bits": "gap bits",
        "gap_bits_coded": "coded",
        "bytes_dense": "dense",
        "bytes": "bytes",
    }
    file_nbytes = os.path.getsize(path)
    totals = {
        "path": os.fspath(path),
        "n_layers": len(network.layers),
        "bytes": network.nbytes,
        "file_bytes": file_nbytes,
        "verified": True,
    }
    summary = f"Deep Compression, {len(network.layers)} layers in {file_nbytes:,} bytes; verified"
    return Table(os.fspath(path), records, headings, totals, summary)


def _entry_record(store: Store, name: str) -> dict[str, Any]:
    entry = store.info(name)
    return _record(name, entry.kind, entry.shape, entry.dtype.name, entry.nbytes, entry.config)


def _record(
    name: str, kind: str, shape: tuple[int, ...], dtype: str, nbytes: int, config: dict[str, Any]
) -> dict[str, Any]:
    size = math.prod(shape)
    return {
        "name": name,
        "kind": kind,
        "shape": list(shape),
        "dtype": dtype,
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / size if size else None,
        "config": config,
    }
