"""Reports of what was done to each tensor of a model, as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files.disk import atomic_write, check_output_path
from ..files.layout import Layout
from .layouts import layout_text
from .text_table import Column, text_table

FORMATS = (".txt", ".json", ".csv")
OPTIONAL_COLUMNS = ("dtype", "seconds")
AT_MOST = "≤ "


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a report.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
    method : str
        The method's name in recipes; ``"keep"`` if the tensor was not compressed.
    settings : dict
        Settings of the method, as given in the recipe.
    reason : str
        Why it was not compressed; else empty.
    bytes_before : int
    bytes_after : int or None
        Bytes of the tensor in the target; None in a dry run if they depend on its values.
    relative_error : float or None
        ‖W − Ŵ‖² / ‖W‖², weighted by the metric; None if it was not compressed.
    seconds : float or None
        Time to compress it; None if an earlier run did it.
    metric : {"squares", "importance", "input_covariance"} or None
        How squared errors are weighted; ``"squares (zero …)"`` where the weights are all zero.
    at_most : bool
        Whether ``bytes_after`` is only an upper bound, in a dry run.
    layout : Layout or None
        How it was seen as a matrix; None if it was not compressed.
    plain_error : float or None
        ‖W − Ŵ‖² / ‖W‖² by the sum of squares, whatever the metric; None if it was not compressed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    method: str
    settings: Mapping[str, Any]
    reason: str
    bytes_before: int
    bytes_after: int | None
    relative_error: float | None
    seconds: float | None
    metric: str | None = None
    at_most: bool = False
    layout: Layout | None = None
    plain_error: float | None = None

    def changed(self, **values: Any) -> TensorRow:
        """Return the row with other values of some attributes."""
        return TensorRow(**{**vars(self), **values})

    @property
    def seen_as(self) -> str:
        """The matrix that was compressed, as text; empty if none was."""
        return layout_text(self.layout) if self.layout else ""

    @property
    def bits_per_weight(self) -> float | None:
        size = math.prod(self.shape)
        return None if self.bytes_after is None or not size else 8 * self.bytes_after / size

    def record(self) -> dict[str, Any]:
        """Return the row as it is written to JSON and CSV."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "method": self.method,
            "settings": dict(self.settings),
            "seen_as": self.seen_as,
            "reason": self.reason,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "at_most": self.at_most,
            "bits_per_weight": self.bits_per_weight,
            "relative_error": self.relative_error,
            "metric": self.metric,
            "plain_error": self.plain_error,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, repr=False)
class Table:
    """A table with totals, which can be written as text, JSON or CSV.

    Attributes
    ----------
    title : str
    records : sequence of dict
        Rows: values that JSON can hold, by column.
    columns : dict
        Headings of the columns in text. Columns that are not here appear in JSON and CSV only.
    totals : dict
        Values for the whole table, which JSON has next to the rows.
    summary : str
        Last lines of the text.
    text_only : tuple of str
        Columns that appear in text only.
    unfolded : tuple of str
        Columns of text_only that are aligned to the right and not wrapped, as numbers are.
    """

    title: str
    records: Sequence[Mapping[str, Any]]
    columns: Mapping[str, str]
    totals: Mapping[str, Any]
    summary: str
    text_only: tuple[str, ...] = ()
    unfolded: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return a JSON object with ``rows`` and the totals."""
        content = _finite({**self.totals, "rows": self._plain_records()})
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """Return a line of column names and a line for each row."""
        text = io.StringIO()
        records = self._plain_records()
        shown = [name for name in self.columns if name not in self.text_only]
        names = list(records[0] if records else shown)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({name: _cell(value) for name, value in record.items()})
        return text.getvalue()

    def to_text(self, width: int | None = None) -> str:
        """Return the table as text.

        Parameters
        ----------
        width : int, optional
            Width of the terminal in characters: rows that do not fit leave out some columns, then
            have a line for their name. Default: as wide as needed.
        """
        columns = []
        for name, heading in self.columns.items():
            values = [record[name] for record in self.records]
            is_number = name in self.unfolded or all(
                isinstance(value, int | float | None) for value in values
            )
            cells = [_shown(name, value) for value in values]
            columns.append(Column(heading, cells, is_number, name in OPTIONAL_COLUMNS))
        lines = [printable(self.title), *text_table(columns, width), "", printable(self.summary)]
        return "\n".join(lines) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write text, JSON or CSV, as the ending of the path says; replace an existing file."""
        ending = check_report_path(path)
        make = {".txt": self.to_text, ".json": self.to_json, ".csv": self.to_csv}[ending]
        with atomic_write(path) as file:
            file.write(make().encode())

    def __repr__(self) -> str:
        return f"Table({self.title}: {self.summary})"

    def _plain_records(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in record.items() if name not in self.text_only}
            for record in self.records
        ]


@dataclass(frozen=True, repr=False)
class Report:
    """The report of one run over a model.

    Attributes
    ----------
    task : {"compress", "decompress"}
    source, target : str
    rows : tuple of TensorRow
    file_bytes_before : int
        Bytes of the source's files.
    file_bytes_after : int or None
        Bytes of the target, including its header; None in a dry run.
    seconds : float
        Time of the whole run.
    dry_run : bool
        Whether nothing was written.
    importance, input_covariance : str or None
        Files with the weights of errors.
    notes : tuple of str
        What was noticed before the work: patterns that match no tensor, tables that cost a lot.
    """

    task: str
    source: str
    target: str
    rows: tuple[TensorRow, ...]
    file_bytes_before: int
    file_bytes_after: int | None
    seconds: float
    dry_run: bool
    importance: str | None = None
    input_covariance: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def compressed(self) -> tuple[TensorRow, ...]:
        """The rows of the tensors that were compressed."""
        return tuple(row for row in self.rows if not row.reason)

    @property
    def ratio(self) -> float | None:
        """Bytes of the source's files over bytes of the target; None in a dry run."""
        return self.file_bytes_before / self.file_bytes_after if self.file_bytes_after else None

    def totals(self) -> dict[str, Any]:
        """Return the sums over all rows and the sizes of the files."""
        known = [row.bytes_after for row in self.rows if row.bytes_after is not None]
        n_weights = sum(math.prod(row.shape) for row in self.rows)
        whole = len(known) == len(self.rows)
        return {
            "source": self.source,
            "target": self.target,
            "importance": self.importance,
            "input_covariance": self.input_covariance,
            "dry_run": self.dry_run,
            "notes": list(self.notes),
            "n_tensors": len(self.rows),
            "n_compressed": len(self.compressed),
            "n_unknown": len(self.rows) - len(known),
            "bytes_before": sum(row.bytes_before for row in self.rows),
            "bytes_after": sum(known) if whole else None,
            "at_most": any(row.at_most for row in self.rows),
            "bits_per_weight": 8 * sum(known) / n_weights if whole and n_weights else None,
            "file_bytes_before": self.file_bytes_before,
            "file_bytes_after": self.file_bytes_after,
            "ratio": self.ratio,
            "seconds": self.seconds,
        }

    def table(self) -> Table:
        """Return the report as a table, to print or save."""
        totals = self.totals()
        done = f"would be {self.task}ed" if self.dry_run else f"{self.task}ed"
        lines = [f"{totals['n_compressed']} of {totals['n_tensors']} tensors {done}"]
        if self.dry_run:
            lines.append(self._foreseen())
        if self.file_bytes_after is not None:
            lines.append(f"{self.file_bytes_before:,} → {self.file_bytes_after:,} bytes")
            if self.task == "compress" and self.ratio:
                smaller = self.ratio >= 1
                times = self.ratio if smaller else 1 / self.ratio
                lines.append(f"{times:.2f} × {'smaller' if smaller else 'larger'}")
            lines.append(f"{self.seconds:.1f} s")
        records = [row.record() for row in self.rows]
        for record, row in zip(records, self.rows, strict=True):
            record["how"] = row.reason or _method_text(row.method, row.settings)
            record["after"] = _bounded(row, "bytes_after")
            record["bits"] = _bounded(row, "bits_per_weight")
            record["under"] = row.metric and row.metric.removeprefix("input_")
        columns = {
            "name": "tensor",
            "shape": "shape",
            "dtype": "dtype",
            "seen_as": "as",
            "how": "method or reason",
            "bytes_before": "bytes",
            "after": "after",
            "bits": "bits",
            "relative_error": "error",
            "under": "metric",
            "plain_error": "plain error",
            "seconds": "s",
        }
        if self.dry_run:
            del columns["relative_error"], columns["plain_error"], columns["seconds"]
        layouts = [row.layout for row in self.rows if row.layout]
        if all(layout.is_usual and len(layout.shape) == 2 for layout in layouts):
            del columns["seen_as"]
        if {row.metric for row in self.rows} <= {None, "squares"}:
            del columns["under"]
            columns.pop("plain_error", None)
        title = f"{self.source} → {self.target}"
        unfolded = ("after", "bits", "under")
        return Table(
            title, records, columns, totals, ", ".join(lines), ("how", *unfolded), unfolded
        )

    def __repr__(self) -> str:
        table = self.table()
        return f"Report({table.title}: {table.summary})"

    def _foreseen(self) -> str:
        """Return the planned sizes as text: of tensors only, as the header is not known yet."""
        totals = self.totals()
        bound = AT_MOST if totals["at_most"] else ""
        known = sum(row.bytes_after or 0 for row in self.rows)
        if totals["n_unknown"]:
            return (
                f"no total before the run: sizes of {totals['n_unknown']} tensors depend on their "
                f"values, the others take {bound}{known:,} bytes"
            )
        return f"tensors of {totals['bytes_before']:,} → {bound}{known:,} bytes"


def check_report_path(path: str | os.PathLike[str]) -> str:
    """Check that a report can be written at a path; return its ending, which is its format."""
    ending = os.path.splitext(os.fspath(path))[1]
    if ending not in FORMATS:
        raise ValueError(f"report must end in {', '.join(FORMATS)}, got {os.fspath(path)!r}")
    check_output_path(path)
    return ending


def printable(text: str) -> str:
    """Escape characters that could control a terminal or break a line of a table."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _method_text(method: str, settings: Mapping[str, Any]) -> str:
    return " ".join([method, *(f"{key}={_cell(value)}" for key, value in settings.items())])


def _bounded(row: TensorRow, name: str) -> str:
    shown = _shown(name, getattr(row, name))
    return f"{AT_MOST}{shown}" if row.at_most else shown


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON has no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    """Return a value for CSV, with lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "shape":
        return " × ".join(map(str, value)) or "()"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}" if name in ("bits_per_weight", "seconds") else f"{value:.3g}"
    if isinstance(value, dict):
        return _method_text("", value).strip()
    return printable(str(value))
