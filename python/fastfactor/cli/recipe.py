"""The command that writes a starter recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


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
