"""Measure fastfactor against its rivals.

    python bench/run.py omp kmeans spmm … [--only NAME …] [--quick] [--json FILE]

Rivals are those of requirements.txt; one that is not installed is named and skipped. A full run of
all takes about half an hour on two cores; --quick, a smoke test on small sizes, one minute.
--only picks workloads by name while one is being tuned.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import machine
from cases import KERNELS, Workload, workloads_of
from harness import judge, measure
from report import print_rows, print_targets


def main() -> None:
    arguments = parse()
    document = machine.describe() | {
        "quick": arguments.quick,
        "rows": [],
        "targets": [],
        "skipped": [],
    }
    for workload in chosen_workloads(arguments):
        print(f"\n{workload.kernel} {workload.name}: {workload.title}", flush=True)
        rows, skipped = measure(workload, quick=arguments.quick)
        verdicts = judge(workload, rows)
        print_rows(rows)
        print_targets(verdicts)
        if arguments.quick:
            print("  (sizes too small for the targets: a smoke test)")
        print(*skipped, sep="\n", flush=True)
        document["rows"] += rows
        document["targets"] += verdicts
        document["skipped"] += skipped
        if arguments.json:
            text = json.dumps(document, indent=1, ensure_ascii=False)
            arguments.json.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", nargs="+", choices=KERNELS)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, two repeats: a smoke test"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results here, after each workload"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="only workloads with this name or first word of it",
    )
    return parser.parse_args()


def chosen_workloads(arguments: argparse.Namespace) -> list[Workload]:
    found = [
        workload
        for kernel in arguments.kernels
        for workload in workloads_of(kernel, arguments.quick)
        if not arguments.only or {workload.name, workload.name.split()[0]} & set(arguments.only)
    ]
    if not found:
        sys.exit(
            "--only must be a workload's name or its first word, got " + " ".join(arguments.only)
        )
    return found


if __name__ == "__main__":
    main()
