"""The command line: the program, its exit codes, and the bench and demo commands.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a difference that `compare` found, 130
interrupted. For 1, 2 and 3 one line on standard error gives the reason.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .._version import __version__
from . import files
from .compress import compress
from .options import Reports, Threads
from .output import check_reports, show
from .progress import show_progress
from .recipe import recipe

if TYPE_CHECKING:
    from ..demo.run import Row

# Plain help and errors, which look the same in a pipe, a log and a terminal.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

# The base class of usage errors: click's, or typer's own copy of it in newer releases. Only its
# child BadParameter is public in both.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "→" shows "?"
    try:
        code = app(prog_name="fastfactor", standalone_mode=False)
    except UsageError as error:
        code = _print_error(error.format_message(), 2)
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        code = _print_error(str(error) or type(error).__name__, 1)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code)


def _print_error(message: str, code: int) -> int:
    from ..models.report import printable

    print("fastfactor: error:", printable(" ".join(message.split())), file=sys.stderr)
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastfactor {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fastfactor(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compress the weights of neural networks.

    Start with `fastfactor demo`, or with `fastfactor compress --help`.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a difference above `compare --max-error`,
    130 interrupted. For 1, 2 and 3 one line on standard error gives the reason.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (compress, files.decompress, files.inspect, files.compare, recipe):
    app.command()(command)


@app.command()
def bench(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with times in seconds.")
    ] = False,
    threads: Threads = None,
    reports: Reports = None,
) -> None:
    """Time the main kernels on this machine.

    Each workload has the size of a typical layer and random values.
    """
    from .bench import run_bench

    check_reports(reports)
    show(run_bench(threads), as_json, reports)


@app.command()
def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with times in seconds.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            max=1024,
            help="Number of threads for compression (default: all cores that this process may "
            "use). Timed forward passes use one thread; dense products use NumPy's own setting.",
        ),
    ] = None,
) -> None:
    """Compress a small trained network with every method.

    The network is a LeNet-300-100 trained on MNIST. Each compressed network is written to a file,
    read back and run on 1,000 of MNIST's test digits.
    """
    from ..demo.run import run_demo

    with show_progress("compressing") as progress:
        rows = run_demo(threads, progress=progress)
    if as_json:
        typer.echo(json.dumps({"rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        _print_table(rows)


def _print_table(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=100, highlight=False)
    n_digits = f"{rows[0].n_digits:,}"
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, int(console.width >= 90), 0, 0),  # the table must fit into 80 columns
        pad_edge=False,
        show_edge=False,
        title=f"LeNet-300-100 on {n_digits} MNIST test digits",
    )
    table.add_column("method", no_wrap=True)
    for heading in ("file", "payload", "ratio", "error", "right", "ms", "ms, one", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.method,
            f"{row.file_bytes:,}",
            f"{row.payload_bytes:,}",
            f"{row.ratio:.1f}",
            f"{row.relative_error:.1%}",
            f"{row.right_before} → {row.right_after}",
            f"{1e3 * row.seconds_batch:.2f}",
            f"{1e3 * row.seconds_single:.3f}",
            f"{row.seconds_compress:.2f}",
        )
    console.print(table)
    different = ", ".join(row.method for row in rows if not row.same_as_held)
    files = "Read back from their files, all classify every digit as before."
    if different:
        files = f"Read back from their files, these classify digits differently: {different}."
    console.print(
        "\nfile, payload: bytes of the file, and of the tensors in it\n"
        "ratio: bytes of the dense file over bytes of this file\n"
        "error: ‖W − Ŵ‖² / ‖W‖² over all weight matrices\n"
        "right: digits classified correctly before and after, without retraining\n"
        f"ms: time for all {n_digits} digits, and for one digit (best of several)\n"
        "s: time to compress\n"
        f"{files}"
        "\n\nEvery method is a form of W ≈ B ∘ C:"
    )
    width = max(len(row.method) for row in rows)
    for row in rows:
        console.print(f"  {row.method:{width}}  {row.lesson}")
