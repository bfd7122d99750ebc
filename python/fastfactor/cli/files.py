"""The commands on files of tensors: compress, decompress, inspect, compare and recipe."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .progress import show_progress

if TYPE_CHECKING:
    from ..models.recipe import Recipe
    from ..models.report import Report, Table

INDEX_ENDING = ".index.json"  # of what names the shards in a folder
# The least error of all methods at 4 bits a weight, on the networks of docs/benchmarks.md.
DEFAULT_METHOD, DEFAULT_SETTINGS = "entropy_coded", ("bits_per_weight=4",)
DIFFERENT = 3  # the exit code of compare for an error above --max-error
MOST_REASONS = 3  # in the message that nothing was compressed
HEADER_SHARE = 0.1  # of a file; a larger header is worth a hint
JSON_HELP = "Print JSON instead of a table."
REPORT_HELP = "Also write the report to FILE (.txt, .json or .csv). May be repeated."
THREADS_HELP = "Number of threads (default: all cores that this process may use)."

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
Reports = Annotated[list[Path] | None, typer.Option("--report", metavar="FILE", help=REPORT_HELP)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted run; keep finished tensors if interrupted again. After a "
        "change of settings, tensors whose own are the same are taken up.",
    ),
]
MaxDense = Annotated[
    int | None,
    typer.Option(
        "--max-dense-nbytes",
        metavar="BYTES",
        min=0,
        help="Refuse compressed tensors that would be larger than this when rebuilt (default: 1 "
        "GiB and 4096 times the file).",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help=THREADS_HELP)]


def compress(
    source: Annotated[
        Path,
        typer.Argument(
            help="The model: a safetensors file, an index of shards, a folder with one of these, "
            "or an .npz file."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The compressed safetensors file to write.")],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="A TOML file that says how to compress each tensor; `fastfactor recipe` writes "
            "one.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="One method for all matrices, instead of a recipe; `fastfactor recipe` lists "
            "them.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the method, such as ratio=8 or max_error=0.05. May be repeated.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="PATTERN",
            help="With --method: do not compress tensors whose names match, such as `*norm*`. May "
            "be repeated.",
        ),
    ] = None,
    keep_dtype: Annotated[
        str | None,
        typer.Option(
            "--keep-dtype",
            metavar="DTYPE",
            help="Convert tensors that are not compressed, such as biases, to float16 or bfloat16; "
            "`decompress` gives them their own dtype back.",
        ),
    ] = None,
    if_impossible: Annotated[
        str | None,
        typer.Option(
            "--if-impossible",
            metavar="stop|keep",
            help="What to do with a tensor that its method cannot compress, such as one with NaN: "
            "stop before any work, which is the default, or keep it and go on.",
        ),
    ] = None,
    importance: Annotated[
        Path | None,
        typer.Option(
            "--importance",
            metavar="FILE",
            help="Weights for the squared errors: tensors with the names and shapes of the "
            "model's.",
        ),
    ] = None,
    input_covariance: Annotated[
        Path | None,
        typer.Option(
            "--input-covariance",
            metavar="FILE",
            help="For each layer, by the name of its weight tensor, the mean of x xᵀ over its "
            "inputs x; the error of its outputs is minimised.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be done; write no model.")
    ] = False,
    resume: Resume = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Deflate the header, which makes small models smaller."),
    ] = False,
    threads: Threads = None,
    reports: Reports = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="DIR",
            help="Draw sizes, errors, singular values and weights to PNG files in DIR.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compress a model by one method or by a recipe.

    For example: fastfactor compress model.safetensors small.safetensors --method codebook --set
    n_bits=4 --set granularity=row

    Without --method and --recipe, matrices are compressed to 4 bits a weight by entropy_coded.
    An existing target is replaced once the new file is complete. Tensors that are not
    floating-point matrices, or would not become smaller, are copied unchanged.
    """
    from ..models.compress import compress_file
    from ..models.recipe import read_recipe

    if recipe is not None and method is not None:
        raise typer.BadParameter("one of --recipe and --method must be given, got both")
    if method is None and settings:
        raise typer.BadParameter("--set must be given with --method")
    if recipe is not None and keep:
        raise typer.BadParameter("--keep must be given without --recipe, whose skip list it is")
    if figures is not None and dry_run:
        raise typer.BadParameter("--figures must be given without --dry-run, got both")
    check_reports(reports, source, *filter(None, (recipe, importance, input_covariance)))
    if figures is not None:
        from ..figures.draw import require_matplotlib, save_figures

        require_matplotlib()
        figures.mkdir(parents=True, exist_ok=True)
    if recipe is None and method is None:
        method, settings = DEFAULT_METHOD, list(DEFAULT_SETTINGS)
        _say(f"no method was given: {method} with {', '.join(settings)}")
    checked = read_recipe(_one_method(method, settings, keep) if method else recipe)
    checked = _with_options(checked, keep_dtype, if_impossible)
    with show_progress("compressing") as progress:
        report = compress_file(
            source,
            target,
            checked,
            importance=importance,
            input_covariance=input_covariance,
            dry_run=dry_run,
            resume=resume,
            compact=compact,
            progress=progress,
            note=_say,
            n_threads=threads,
        )
    if figures is not None:
        with show_progress("drawing") as progress:
            save_figures(report, figures, progress=progress, n_threads=threads)
    show(report.table(), as_json, reports)
    if not compact and not as_json:
        _hint_at_compact(report)
    _check_something_done(report, checked)


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
        _say(
            f"an error is larger than {max_error:g}: {found.largest_error:.4g} for tensor "
            f"{found.worst.name!r}{why}"
        )
        raise typer.Exit(DIFFERENT)


def recipe(
    path: Annotated[
        Path | None,
        typer.Argument(help="The TOML file to write (default, and for -: standard output)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all methods and their settings as JSON.")
    ] = False,
) -> None:
    """Write a starter recipe that lists all methods.

    Comments in it show every method with its settings and their defaults.
    """
    from ..models.recipe import method_settings
    from ..models.starter import starter

    if as_json:
        import json

        typer.echo(json.dumps({"methods": method_settings()}, indent=2, default=str))
    elif path is None or str(path) == "-":
        typer.echo(starter(), nl=False)
    else:
        from ..files.disk import atomic_write

        if os.path.lexists(path) and not force:
            raise ValueError(f"{path} must not exist, got an existing file; --force replaces it")
        with atomic_write(path) as file:
            file.write(starter().encode())


def show(table: Table, as_json: bool, reports: list[Path] | None) -> None:
    """Write a table to files, and print it as JSON or as text that fits the terminal."""
    for path in reports or []:
        table.save(path)
    if as_json:
        typer.echo(table.to_json())
        return
    from rich.console import Console

    console = Console()
    typer.echo(table.to_text(console.width if console.is_terminal else None), nl=False)


def check_reports(reports: list[Path] | None, *sources: Path) -> None:
    """Check before any work that every report can be written, and that none is a source."""
    from ..models.report import check_report_path

    for path in reports or []:
        for source in sources:
            inside = source.is_dir() and path.name.endswith(INDEX_ENDING)
            if path.exists() and path.samefile(source / path.name if inside else source):
                raise typer.BadParameter(f"--report: {path} must not be a source, got {source}")
        try:
            check_report_path(path)
        except ValueError as error:
            raise typer.BadParameter(f"--report: {error}") from error


def _say(text: str) -> None:
    """Print a note to standard error."""
    from ..models.report import printable

    print("fastfactor:", printable(text), file=sys.stderr)


def _check_something_done(report: Report, recipe: Recipe) -> None:
    """Raise ValueError if a recipe with methods has compressed no tensor, with the reasons."""
    rules = (recipe.default, *recipe.patterns.values(), *recipe.names.values())
    if report.compressed or not any(rule.compressor for rule in rules):
        return
    reasons = Counter(row.reason for row in report.rows).most_common(MOST_REASONS)
    said = "; ".join(f"{reason} ({n})" for reason, n in reasons)
    raise ValueError(
        f"at least one tensor must be compressed, got none of {len(report.rows)}: {said}"
    )


def _hint_at_compact(report: Report) -> None:
    """Suggest --compact if a large share of the file is its header."""
    nbytes = report.file_bytes_after
    if nbytes is None:
        return
    header = nbytes - sum(row.bytes_after or 0 for row in report.rows)
    if header > HEADER_SHARE * nbytes:
        typer.echo(f"The header takes {header:,} of {nbytes:,} bytes; --compact makes it smaller.")


def _one_method(method: str, settings: list[str] | None, keep: list[str] | None) -> dict[str, Any]:
    """Return a recipe made from options; report what is wrong with them as wrong usage."""
    from ..models.recipe import check_method, read_rule

    rule: dict[str, Any] = {"method": method}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--set must be KEY=VALUE, got {setting!r}")
        if key == "method":
            raise typer.BadParameter(f"--set must be a setting of --method, got {setting!r}")
        rule[key] = _value(text)
    try:
        check_method(method, "--method")
        read_rule(rule, "--set")
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    return {"default": rule, "skip": keep or []}


def _with_options(recipe: Recipe, keep_dtype: str | None, if_impossible: str | None) -> Recipe:
    """Return a recipe with what options say in place of what it says itself."""
    from ..models.recipe import check_options

    options = {"keep_dtype": keep_dtype, "if_impossible": if_impossible}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    try:
        check_options(given, "--")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return dataclasses.replace(recipe, **given)


def _value(text: str) -> Any:
    """Parse a value as TOML; return anything else as a string."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
