"""What commands print and write: tables, reports, notes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..models.report import Table

INDEX_ENDING = ".index.json"  # of what names the shards in a folder


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


def say(text: str) -> None:
    """Print a note to standard error."""
    from ..models.report import printable

    print("fastfactor:", printable(text), file=sys.stderr)
