"""Results as text on the terminal: one line a row, then one line a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def print_rows(rows: list[Row]) -> None:
    heads = ("measure", "state", "contestant", "median", "min", "max", "n", "× ours", "figures")
    lines = [
        (
            row["measure"],
            row["state"],
            row["contestant"],
            duration(row["median"]),
            duration(row["min"]),
            duration(row["max"]),
            str(row["repeats"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            ", ".join(f"{name} {value:.6g}" for name, value in row["figures"].items()),
        )
        for row in sorted(rows, key=lambda r: (r["measure"], r["state"], r["median"]))
    ]
    print_columns(heads, lines)


def print_targets(verdicts: list[Row]) -> None:
    heads = ("target", "against", "figure", "ratio", "must", "aim", "verdict")
    lines = [
        (
            f"{v['subject']}, {v['measure']}",
            against(v),
            v["figure"],
            "" if v["ratio"] is None else f"{v['ratio']:.5g}",
            bound(v),
            "" if v["aim"] is None else f"≥ {v['aim']:g}",
            verdict(v),
        )
        for v in verdicts
    ]
    if lines:
        print_columns(heads, lines)


def against(v: Row) -> str:
    rivals = " | ".join(v["rivals"])
    return rivals if v["rival_measure"] == v["measure"] else f"{rivals}, {v['rival_measure']}"


def bound(v: Row) -> str:
    if v["at_least"] is not None:
        return f"≥ {v['at_least']:.3g}"
    return "" if v["at_most"] is None else f"≤ {v['at_most']:g}"


def verdict(v: Row) -> str:
    if v["reached"] is None:
        return "not measured"
    if not v["reached"]:
        return "MISSED"
    if v["aim"] is None:
        return "reached"
    return "aim reached" if v["ratio"] >= v["aim"] else "below the aim"


def duration(value: float) -> str:
    if abs(value) < 1e-3:
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1e3:.2f} ms" if abs(value) < 1 else f"{value:.2f} s"


def unbroken(text: str) -> str:
    """A figure and its unit, which stay on one line in a narrow cell."""
    return text.replace(" ", "\u00a0")


def markdown(heads: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---"] * len(heads)
    return ["| " + " | ".join(line) + " |" for line in (heads, rule, *lines)]


def place_of(document: dict[str, Any]) -> str:
    """What a run was measured on."""
    machine = document["machine"]
    cpu = machine["cpu"]
    family = f" family {cpu['family']} model {cpu['model_number']}" if cpu["family"] else ""
    return f"{cpu['model']}{family}, {cpu['vectors']}, {machine['threads_used']} threads"


def time_of(document: dict[str, Any]) -> str:
    """When, and what."""
    commit = document["commit"]
    changes = ", with changes" if commit["dirty"] else ""
    return f"{document['date']}, commit {str(commit['id'])[:10]}{changes}"


def print_columns(heads: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, *lines):
        print(
            "  "
            + "  ".join(
                cell.ljust(width) for cell, width in zip(line, widths, strict=True)
            ).rstrip()
        )
    print(flush=True)
