"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JSON_HELP = "Print JSON instead of a table."
REPORT_HELP = "Also write the report to FILE (.txt, .json or .csv). May be repeated."
THREADS_HELP = "Number of threads (default: all cores that this process may use)."

Json = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
Reports = Annotated[list[Path] | None, typer.Option("--report", metavar="FILE", help=REPORT_HELP)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted run; keep finished tensors if interrupted again. After a "
        "change of settings, tensors whose own are the same are taken up.",
    ),
]
MaxDense = Annotated[
    int | None,
    typer.Option(
        "--max-dense-nbytes",
        metavar="BYTES",
        min=0,
        help="Refuse compressed tensors that would be larger than this when rebuilt (default: 1 "
        "GiB and 4096 times the file).",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help=THREADS_HELP)]
