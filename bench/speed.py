"""The short table of speeds: for each kernel one workload, and the fastest rival on it."""

from __future__ import annotations

from typing import Any

from report import duration, markdown, place_of, unbroken

Row = dict[str, Any]

OURS = "fastfactor"

# (kernel, workload, measure) -> what a reader who has not seen the full tables is told.
TOLD = {
    ("omp", "a", "omp"): "`omp`: 100,000 rows of 64 values, 5 of 256 atoms each",
    ("kmeans", "b", "20 iterations"): "`kmeans`: 200,000 × 64, 1,024 clusters, 20 iterations",
    ("kmeans", "balanced 10,240", "10 iterations"): (
        "`kmeans(balanced=True)`: 10,240 × 32, 64 clusters, 10 iterations"
    ),
    ("kmeans1d", "rows", "exact"): "`kmeans1d`: 4,096 rows of 4,096 values, 16 clusters each",
    ("select", "matrix", "mask"): "`prune_mask`: 4,096 × 4,096, 90 % dropped",
    ("spmm", "90 %", "8 columns"): "`spmm`: 4,096 × 4,096 with 90 % zeros times 8 columns",
    ("codebook", "4-bit", "1 input"): "`codebook_matmul`: 4,096 × 4,096 in 4-bit codes, 1 input",
    ("sparse_codebook", "90 %", "1 input"): (
        "`sparse_codebook_matmul`: 4,096 × 4,096, 90 % zeros, 4-bit codes, 1 input"
    ),
}


SPEED_WORKLOADS = [(kernel, workload) for kernel, workload, _ in TOLD]


def speed(documents: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: our median, the fastest rival's and how many times ours that is."""
    rows = [row for document in documents for row in document["rows"]]
    heads = ["what", OURS, "fastest rival measured", "its time", "times faster"]
    places = "; ".join(dict.fromkeys(map(place_of, documents)))
    days = sorted({str(document["date"])[:10] for document in documents})
    return [
        *markdown(heads, [line_of(key, rows) for key in TOLD]),
        "",
        f"<sub>Medians of samples taken in turns, operands not in cache, float32. {places}; "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}.</sub>",
    ]


def line_of(key: tuple[str, str, str], rows: list[Row]) -> list[str]:
    chosen = [r for r in rows if (r["kernel"], r["workload"], r["measure"]) == key]
    cold = [r for r in chosen if r["state"] == "cold"]
    ours = next(r for r in cold if r["contestant"] == OURS)
    best = min((r for r in cold if is_rival(r)), key=lambda r: r["median"])
    return [
        TOLD[key],
        unbroken(duration(ours["median"])),
        best["contestant"],
        unbroken(duration(best["median"])),
        unbroken(f"{best['median'] / ours['median']:.3g} ×"),
    ]


def is_rival(row: Row) -> bool:
    """Whether another library was timed, not fastfactor at some level or setting."""
    return not str(row["contestant"]).startswith(OURS)
