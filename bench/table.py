"""Write the tables of README.md, docs and bench/README.md: table.py [--check]

They mark the places:

    <!-- bench:omp -->
    (replaced)
    <!-- /bench -->

Names: omp, hashed_omp, kmeans, kmeans1d, spmm, codebook, sparse_codebook, coding, trellis, select
(cold medians of every contestant), spmm-hot, levels (of instruction sets), targets, speed (one
workload a kernel and its fastest rival), quality (errors at equal bytes, of experiments) or
quality-MATRIX, errors-by-method and errors-by-size (of size_error_curves), convolutions-metrics and
-speed, and while-training-sizes, -times, -overhead and -tokens. Numbers come from bench/results,
each workload's from the newest full run that holds it. --check writes nothing and fails if a file
differs from what it should hold.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import factored_networks
import while_training
from cases import KERNELS, LEVELS, workloads_of
from curves import errors_by_method, errors_by_size
from quality import quality
from report import against, bound, duration, markdown, place_of, time_of, unbroken, verdict
from speed import SPEED_WORKLOADS, speed

Row = dict[str, Any]
Results = dict[tuple[str, str], dict[str, Any]]  # (kernel, workload) -> its newest run

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(
    ROOT / page
    for page in (
        "README.md",
        "docs/benchmarks.md",
        "docs/methods.md",
        "docs/smaller.md",
        "bench/README.md",
        "bench/experiments/README.md",
    )
)
RESULTS = ROOT / "bench" / "results"
PLACE = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
OURS = "fastfactor"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if a page is out of date")
    arguments = parser.parse_args()
    results = newest_results()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT)
        if not PLACE.search(text):
            sys.exit(f"{name} must hold a `<!-- bench:NAME -->` … `<!-- /bench -->` pair, got none")
        filled = fill(text, results)
        if arguments.check and filled != text:
            sys.exit(f"{name} differs from bench/results: run `python bench/table.py`")
        if filled != text:
            page.write_text(filled, encoding="utf-8")


def fill(text: str, results: Results) -> str:
    return PLACE.sub(lambda place: place[1] + table(place[2], results) + place[3], text)


def table(name: str, results: Results) -> str:
    if name.partition("-")[0] == "quality":
        return "\n".join(quality(name.partition("-")[2])) + "\n"
    if name == "speed":
        return "\n".join(speed(newest(SPEED_WORKLOADS, results))) + "\n"
    if name in CURVES:
        return "\n".join(CURVES[name]()) + "\n"
    if name not in TABLES:
        known = ", ".join(["speed", "quality", *CURVES, *TABLES])
        sys.exit(f"a bench table's name must be one of {known}, got {name}")
    kernels, part, draw = TABLES[name]
    workloads = [(k, workload.name) for k in kernels for workload in workloads_of(k, False)]
    chosen = newest(workloads, results)
    lines = draw([row for document in chosen for row in document[part]])
    return "\n".join([*lines, "", *provenance(chosen)]) + "\n"


def newest(workloads: Iterable[tuple[str, str]], results: Results) -> list[dict[str, Any]]:
    """The run of each workload."""
    wanted = list(dict.fromkeys(workloads))
    missing = [" ".join(key) for key in wanted if key not in results]
    if missing:
        sys.exit(f"bench/results must hold a full run of {', '.join(missing)}; found none")
    return [results[key] for key in wanted]


def newest_results() -> Results:
    """For each workload the newest run that holds it, reduced to that workload."""
    found: Results = {}
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    full_runs = [d for d in documents if "targets" in d and not d["quick"]]
    for document in sorted(full_runs, key=lambda d: d["date"]):
        for key in dict.fromkeys(map(workload_of, document["rows"])):
            own = {
                part: [row for row in document[part] if workload_of(row) == key]
                for part in ("rows", "targets")
            }
            found[key] = document | own
    return found


def workload_of(row: Row) -> tuple[str, str]:
    return row["kernel"], row["workload"]


def provenance(documents: list[dict[str, Any]]) -> list[str]:
    """A line for each run that the table draws on."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for document in documents:
        runs.setdefault((place_of(document), time_of(document)), []).extend(document["rows"])
    return [
        f"<sub>{where}, float32; medians of {repeats_of(rows)} interleaved samples; {when}. "
        f"{notes_of(rows)}</sub>"
        for (where, when), rows in runs.items()
    ]


def notes_of(rows: list[Row]) -> str:
    notes = dict.fromkeys(
        f"{row['contestant']}: {row['note']}."
        for row in rows
        if row["note"] and row["state"] != "limit" and not is_held_level(row)
    )
    return " ".join(notes)


def repeats_of(rows: list[Row]) -> str:
    counts = [row["repeats"] for row in rows]
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])


def contestants_by_workload(state: str) -> Callable[[list[Row]], list[str]]:
    """A line per workload and measure, a column per contestant: time, and how many times ours."""

    def draw(rows: list[Row]) -> list[str]:
        rows = [r for r in rows if r["state"] == state and not is_held_level(r)]
        names = columns_of(rows)
        lines = [
            [title, measure, *(cell(chosen.get(name)) for name in names)]
            for (title, measure), chosen in grouped(rows).items()
        ]
        return markdown(["workload", "measure", *names], lines)

    return draw


def levels(rows: list[Row]) -> list[str]:
    """Time at each instruction-set level and its speed as a share of the level above."""
    rows = [r for r in rows if r["state"] == "cold" and is_held_level(r)]
    lines = []
    for (title, measure), chosen in grouped(rows).items():
        times = [chosen.get(f"{OURS} {level}", {}).get("median") for level in LEVELS]
        shares = ["", *(f" ({a / b:.2f})" if a and b else "" for a, b in pairwise(times))]
        cells = [
            unbroken(duration(t)) + share if t else ""
            for t, share in zip(times, shares, strict=True)
        ]
        lines.append([title, measure, *cells])
    return markdown(["workload", "measure", *LEVELS], lines)


def targets(rows: list[Row]) -> list[str]:
    lines = [
        [
            v["title"],
            f"{v['subject']}, {v['measure']}",
            against(v).replace("|", "or"),
            v["figure"],
            "" if v["ratio"] is None else f"{v['ratio']:.4g}",
            bound(v),
            "" if v["aim"] is None else f"≥ {v['aim']:g}",
            verdict(v),
        ]
        for v in rows
    ]
    heads = ["workload", "what", "against", "figure", "ratio", "must", "aim", "verdict"]
    return markdown(heads, lines)


def is_held_level(row: Row) -> bool:
    return str(row["contestant"]).startswith(f"{OURS} ")


def columns_of(rows: list[Row]) -> list[str]:
    names = dict.fromkeys(row["contestant"] for row in rows)
    return sorted(names, key=lambda name: name != OURS)


def grouped(rows: list[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["title"], row["measure"]), {})[row["contestant"]] = row
    return groups


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    time = unbroken(duration(row["median"]))
    if row["contestant"] == OURS:
        return f"**{time}**"
    if row["ratio"] is None:
        return time
    times = unbroken(f"({row['ratio']:.3g} ×)")
    return f"{time} {times}"


LISTED = tuple(k for k in KERNELS if k != "convolution")  # of which there is no full run yet
TABLES: dict[str, tuple[tuple[str, ...], str, Callable[[list[Row]], list[str]]]] = {
    **{kernel: ((kernel,), "rows", contestants_by_workload("cold")) for kernel in LISTED},
    "spmm-hot": (("spmm",), "rows", contestants_by_workload("hot")),
    "levels": (LISTED, "rows", levels),
    "targets": (LISTED, "targets", targets),
}

CURVES = {
    "errors-by-method": errors_by_method,
    "errors-by-size": errors_by_size,
    "convolutions-metrics": factored_networks.accuracies_by_metric,
    "convolutions-speed": factored_networks.speeds,
    "while-training-sizes": while_training.qualities_by_size,
    "while-training-times": while_training.qualities_by_time,
    "while-training-overhead": while_training.overheads,
    "while-training-tokens": while_training.tokens,
}

if __name__ == "__main__":
    main()
