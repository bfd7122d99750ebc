"""The command that compresses a model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Reports, Resume, Threads
from .output import check_reports, say, show
from .progress import show_progress

if TYPE_CHECKING:
    from ..models.report import Report
    from ..models.rules import Recipe

# The least error of all methods at 4 bits a weight, on the networks of docs/benchmarks.md.
DEFAULT_METHOD, DEFAULT_SETTINGS = "entropy_coded", ("bits_per_weight=4",)
MOST_REASONS = 3  # in the message that nothing was compressed
HEADER_SHARE = 0.1  # of a file; a larger header is worth a hint


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
        from ..figures import require_matplotlib, save_figures

        require_matplotlib()
        figures.mkdir(parents=True, exist_ok=True)
    if recipe is None and method is None:
        method, settings = DEFAULT_METHOD, list(DEFAULT_SETTINGS)
        say(f"no method was given: {method} with {', '.join(settings)}")
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
            note=say,
            n_threads=threads,
        )
    if figures is not None:
        with show_progress("drawing") as progress:
            save_figures(report, figures, progress=progress, n_threads=threads)
    show(report.table(), as_json, reports)
    if not compact and not as_json:
        _hint_at_compact(report)
    _check_something_done(report, checked)


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
