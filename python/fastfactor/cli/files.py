"""The commands on compressed files: decompress, inspect and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, MaxDense, Reports, Resume, Threads
from .output import check_reports, say, show
from .progress import show_progress

DIFFERENT = 3  # the exit code of compare for an error above --max-error


def decompress(
    source: Annotated[Path, typer.Argument(help="A compressed file, as `compress` writes it.")],
    target: Annotated[Path, typer.Argument(help="The plain safetensors file to write.")],
    resume: Resume = False,
    max_dense_nbytes: MaxDense = None,
    threads: Threads = None,
    reports: Reports = None,
    as_json: Json = False,
) -> None:
    """Rebuild all tensors of a compressed file."""
    from ..models.compress import decompress_file

    check_reports(reports, source)
    with show_progress("decompressing") as progress:
        report = decompress_file(
            source,
            target,
            resume=resume,
            max_dense_nbytes=max_dense_nbytes,
            progress=progress,
            n_threads=threads,
        )
    show(report.table(), as_json, reports)


def inspect(
    path: Annotated[Path, typer.Argument(help="A compressed file or an uncompressed model.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all data and check that it is intact.")
    ] = False,
    max_dense_nbytes: MaxDense = None,
    reports: Reports = None,
    as_json: Json = False,
) -> None:
    """List the tensors of a file: kind, shape, dtype, size."""
    from ..models.inspect import inspect_file

    check_reports(reports, path)
    table = inspect_file(path, verify=verify, max_dense_nbytes=max_dense_nbytes)
    show(table, as_json, reports)


def compare(
    first: Annotated[Path, typer.Argument(help="The reference A: a compressed file or a model.")],
    second: Annotated[Path, typer.Argument(help="The file or model B to compare with it.")],
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", min=0, help="Exit with code 3 if an error is larger."),
    ] = None,
    max_dense_nbytes: MaxDense = None,
    threads: Threads = None,
    reports: Reports = None,
    as_json: Json = False,
) -> None:
    """Show the error of each tensor between two files.

    The error is ‖A − B‖² / ‖A‖², where A is a tensor of the first file and B the tensor of the
    same name in the second.
    """
    from ..models.compare import compare_files

    check_reports(reports, first, second)
    with show_progress("comparing") as progress:
        found = compare_files(
            first,
            second,
            max_dense_nbytes=max_dense_nbytes,
            progress=progress,
            n_threads=threads,
        )
    show(found.table(), as_json, reports)
    if found.rows and all(row.fault.startswith("only in") for row in found.rows):
        raise ValueError(f"{first} and {second} must have names of tensors in common, got none")
    if max_error is not None and found.worst and not found.largest_error <= max_error:
        why = f" ({found.worst.fault})" if found.worst.fault else ""
        say(
            f"an error is larger than {max_error:g}: {found.largest_error:.4g} for tensor "
            f"{found.worst.name!r}{why}"
        )
        raise typer.Exit(DIFFERENT)
