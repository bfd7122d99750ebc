"""Tables of errors at some sizes, from what bench/experiments/size_error_curves.py wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report import markdown, place_of, time_of

Line = dict[str, Any]

RESULTS = Path(__file__).resolve().parent / "results" / "size_error_curves.json"
MATRICES = {
    "lenet fc1": "LeNet-300-100's first layer",
    "wordllama, 4,096 rows": "wordllama's embeddings",
}
SAME_SIZE = 1.01  # what counts as the same number of bytes
FLOAT32_BITS = 32


def errors_by_method() -> list[str]:
    """Lines of Markdown: each method's least error at 8 and 16 times fewer bytes than float32."""
    document = json.loads(RESULTS.read_text("utf-8"))
    curves = document["curves"]
    columns = [(matrix, ratio) for matrix in MATRICES for ratio in (8, 16)]
    found: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(method_of(line) for line in curves):
        lines = [line for line in curves if method_of(line) == name]
        found[name] = [least_error(lines, matrix, ratio) for matrix, ratio in columns]
    del found["truncated SVD"]  # the same as LowRank
    ordered = sorted(found.items(), key=lambda item: [error or 1.0 for error in item[1]])
    heads = ["method", *(f"{MATRICES[matrix]}, {ratio} ×" for matrix, ratio in columns)]
    rows = [[f"`{name}`", *map(shown, errors)] for name, errors in ordered]
    return [*markdown(heads, rows), "", note(document)]


def errors_by_size(method: str = "EntropyCoded") -> list[str]:
    """Lines of Markdown: one method's error at some ratios."""
    document = json.loads(RESULTS.read_text("utf-8"))
    lines = [line for line in document["curves"] if line["method"] == method]
    heads = ["smaller than float32", "bits a weight", *(f"error, {m}" for m in MATRICES.values())]
    rows = [
        [
            f"{FLOAT32_BITS / bits:.3g} ×",
            f"{bits:g}",
            *(shown(least_error(lines, matrix, FLOAT32_BITS / bits)) for matrix in MATRICES),
        ]
        for bits in (4, 3, 2, 1)
    ]
    return [*markdown(heads, rows), "", note(document)]


def method_of(line: Line) -> str:
    return str(line["method"]).partition(",")[0]


def least_error(lines: list[Line], matrix: str, ratio: float) -> float | None:
    """The least error in at most so many bytes; None where nothing is so small."""
    fitting = [
        error
        for line in lines
        if line["matrix"] == matrix
        for nbytes, error in zip(line["bytes"], line["error"], strict=True)
        if nbytes and nbytes * ratio <= SAME_SIZE * 4 * line["n_weights"]
    ]
    return min(fitting, default=None)


def shown(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"


def note(document: dict[str, Any]) -> str:
    return (
        "<sub>Error: ‖W − Ŵ‖² / ‖W‖², the best of several settings of a method. wordllama: the "
        f"first 4,096 rows. {place_of(document)}; {time_of(document)}.</sub>"
    )
