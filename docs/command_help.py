"""Write the commands and their options into command_line.md: command_help.py [--check].

What it writes is what `--help` says, and stands between

    <!-- help -->
    <!-- /help -->

--check writes nothing and fails if the page differs from what it should hold.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import typer
from fastfactor.cli.app import app

PAGE = Path(__file__).parent / "command_line.md"
PLACE = re.compile(r"(<!-- help -->\n).*?(<!-- /help -->)", re.DOTALL)
NUMBERS = {"threads": "N", "max_error": "X"}  # what the value of an option is called


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    commands: dict[str, Any] = typer.main.get_command(app).commands
    sections = "\n".join(section(name, command) for name, command in commands.items())
    filled = PLACE.sub(lambda place: f"{place[1]}\n{sections}\n{place[2]}", text)
    if arguments.check and filled != text:
        sys.exit(f"{PAGE.name} differs from --help: run `python docs/command_help.py`")
    if filled != text:
        PAGE.write_text(filled, encoding="utf-8")


def section(name: str, command: Any) -> str:
    """Return a heading, how the command is called, what it does, and a table of its arguments."""
    positional = [p for p in command.params if p.param_type_name == "argument"]
    call = " ".join([f"fastfactor {name} [OPTIONS]", *map(argument_name, positional)])
    rows = [f"| {shown(p)} | {(p.help or '').replace('|', '/')} |" for p in command.params]
    return "\n".join(
        [
            f"## fastfactor {name}",
            "",
            f"```\n{call}\n```",
            "",
            command.help,
            "",
            "| argument or option | what it means |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def argument_name(parameter: Any) -> str:
    name = str(parameter.name).upper()
    return name if parameter.required else f"[{name}]"


def shown(parameter: Any) -> str:
    """Return an argument or option as a user types it."""
    if parameter.param_type_name == "argument":
        return f"`{argument_name(parameter)}`"
    value = "" if parameter.is_flag else parameter.metavar or NUMBERS[parameter.name]
    return f"`{' '.join(filter(None, [parameter.opts[0], value]))}`"


if __name__ == "__main__":
    main()
