"""The examples of a Markdown page: its blocks of code, run in order in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from fastfactor.cli import app as cli
from typer.testing import CliRunner

FENCED = r"^```(?P<kind>python|sh|toml|text)\n(?P<code>.*?)^```$"
INDENTED = r"(?:^    fastfactor .*\n)+"
BLOCK = re.compile(f"{FENCED}|(?P<commands>{INDENTED})", re.DOTALL | re.MULTILINE)
SAID = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


class Block(NamedTuple):
    kind: str  # python, sh, toml or text
    code: str


def blocks_of(page: Path) -> list[Block]:
    """Fenced blocks of these kinds, and indented lines that begin with ``fastfactor``."""
    return [
        Block(found["kind"] or "sh", found["code"] or found["commands"])
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def run(blocks: list[Block], capsys: Any) -> None:
    """Run Python blocks as one script and fastfactor's commands; a recipe goes to recipe.toml.

    What a block prints must be what the comments behind its ``print`` say, and a block of text
    after commands what the last of them printed, but for seconds.
    """
    script: dict[str, Any] = {}
    printed = ""
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, "example", "exec"), script)
            said = SAID.findall(code)
            assert len(said) == code.count("print("), f"not every print says what comes:\n{code}"
            assert capsys.readouterr().out.splitlines() == said, code
        elif kind == "toml":
            Path("recipe.toml").write_text(code, encoding="utf-8")
        elif kind == "sh":
            printed = output_of_last(code)
        elif printed:
            assert without_seconds(code) == without_seconds(printed)
            printed = ""


def output_of_last(code: str) -> str:
    """Run the lines that begin with ``fastfactor``, and give what the last one printed."""
    output = ""
    for line in code.splitlines():
        if line.strip().startswith("fastfactor "):
            result = CliRunner().invoke(cli.app, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}: {result.output}"
            output = result.output
    return output


def without_seconds(text: str) -> str:
    """Lines with single blanks, without rules and without times, which end a line."""
    lines = [re.sub(r"─+|\b\d+\.\d+( s)?$", "", line).split() for line in text.splitlines()]
    return "\n".join(" ".join(words) for words in lines if words)
