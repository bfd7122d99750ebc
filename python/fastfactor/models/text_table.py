"""Tables as text: in aligned columns, in time proportional to the number of rows."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
INDENT = 4  # of the second line of a row, where a terminal is too narrow for one
MIN_WRAPPED = 12  # the narrowest that a column is wrapped to


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    heading : str
    cells : sequence of str
        One for each row, without line breaks.
    is_number : bool
        Whether it is aligned to the right and never wrapped.
    is_optional : bool
        Whether it may be left out where there is no room.
    """

    heading: str
    cells: Sequence[str]
    is_number: bool = False
    is_optional: bool = False

    @property
    def width(self) -> int:
        return max(map(text_width, (self.heading, *self.cells)))


def text_table(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """Return the lines of a table: headings, a rule, and the rows.

    Cells of the first column, which are names, are never broken. Where a row does not fit into
    `width`, optional columns are left out; if that is not enough, the name stands on a line of its
    own and the longest column of words is wrapped.
    """
    columns = list(columns)
    widths = {id(column): column.width for column in columns}

    def total() -> int:
        return sum(widths[id(c)] for c in columns) + len(GAP) * (len(columns) - 1) + 1

    while width is not None and total() > width:
        optional = [column for column in columns if column.is_optional]
        if not optional:
            return _two_lines(columns, [widths[id(c)] for c in columns], width)
        columns.remove(optional[-1])
    sizes = [widths[id(column)] for column in columns]
    lines = [" " + line for line in _aligned(columns, sizes)]
    return [lines[0], " " + "─" * (total() - 1), *lines[1:]]


def text_width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    widths = (
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
    return sum(widths)


def _aligned(columns: Sequence[Column], sizes: Sequence[int]) -> list[str]:
    """Return the headings and rows as lines."""
    padded = []
    for column, size in zip(columns, sizes, strict=True):
        texts = (column.heading, *column.cells)
        padded.append([_padded(text, size, right=column.is_number) for text in texts])
    return [GAP.join(cells).rstrip() for cells in zip(*padded, strict=True)]


def _two_lines(columns: Sequence[Column], sizes: list[int], width: int) -> list[str]:
    """Return a table whose names stand on lines of their own."""
    names, rest, sizes = columns[0], list(columns[1:]), sizes[1:]
    over = sum(sizes) + len(GAP) * (len(rest) - 1) + INDENT - width
    words = [i for i, column in enumerate(rest) if not column.is_number]
    if over > 0 and words:
        longest = max(words, key=lambda i: sizes[i])
        sizes[longest] = max(sizes[longest] - over, MIN_WRAPPED)
    lines = []
    for row, name in enumerate((names.heading, *names.cells)):
        lines.append(f" {name}")
        cells = [column.cells[row - 1] if row else column.heading for column in rest]
        wrapped = [
            [text] if column.is_number else textwrap.wrap(text, size) or [""]
            for text, column, size in zip(cells, rest, sizes, strict=True)
        ]
        for at in range(max(map(len, wrapped))):
            parts = [part[at] if at < len(part) else "" for part in wrapped]
            texts = [
                _padded(text, size, right=column.is_number)
                for text, column, size in zip(parts, rest, sizes, strict=True)
            ]
            lines.append((" " * INDENT + GAP.join(texts)).rstrip())
        if row == 0:
            lines.append(" " + "─" * (width - 1))
    return lines


def _padded(text: str, size: int, *, right: bool) -> str:
    blank = " " * (size - text_width(text))
    return blank + text if right else text + blank
