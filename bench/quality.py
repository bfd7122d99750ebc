"""Tables of errors at equal true bytes, from what bench/experiments/*_quality.py wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report import duration, markdown, place_of, time_of

Line = dict[str, Any]

RESULTS = Path(__file__).resolve().parent / "results"
HEADS = ["matrix", "bits a weight", "fastfactor", "error", "time", "against", "error", "time"]
NAMES = {
    "wordllama": "wordllama's embeddings, 32,000 × 256",
    "lenet_fc1": "LeNet-300-100's first layer, 300 × 784",
    "lenet_fc2": "its second, 100 × 300",
}


def quality(only: str = "") -> list[str]:
    """Lines of Markdown: each of ours beside the rivals that took as many bytes."""
    dictionaries, codebooks = document("dictionary_quality"), document("codebook_quality")
    found = [*dictionary_lines(dictionaries["lines"]), *codebook_lines(codebooks["lines"])]
    lines = [row_of(ours, rival) for ours, rival in found if only in ours["matrix"]]
    return [
        *markdown(HEADS, lines),
        "",
        "<sub>Error: ‖W − Ŵ‖² / ‖W‖². SPAMS and scikit-learn: best of four and of two settings, "
        "each given ten times our time; their atoms and values are not rounded. faiss: trained on "
        f"all rows, 100 iterations. {measured(dictionaries)}; {measured(codebooks)}.</sub>",
    ]


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def measured(found: dict[str, Any]) -> str:
    return f"{place_of(found['machine'])}, {time_of(found['machine'])}"


def dictionary_lines(lines: list[Line]) -> list[tuple[Line, Line]]:
    """`Dictionary` with so many values a block, and who else learned dictionaries of that size."""
    found = []
    for ours in lines:
        if ours["by"] != "Dictionary":
            continue
        case = [line for line in lines if case_of(line) == case_of(ours)]
        name = f"`Dictionary`, {ours['n_nonzero_coefs']} of {ours['n_atoms']} atoms"
        for rival in ("SPAMS", "scikit-learn"):
            best = min((line for line in case if rival in line["by"]), key=error_of)
            found.append((ours | {"name": name}, best | {"name": best["by"]}))
    return found


def codebook_lines(lines: list[Line]) -> list[tuple[Line, Line]]:
    """Each quantizer of faiss, but those that trained for less, and ours of that kind and size."""
    found = []
    for rival in lines:
        if rival["by"] != "faiss" or "niter=25" in rival["settings"]:
            continue
        is_sum = "2 ×" in rival["settings"]
        same = [
            line
            for line in lines
            if line["by"] == "Codebook"
            and size_of(line) == size_of(rival)
            and ("n_codebooks" in line["settings"]) == is_sum
        ]
        ours = min(same, key=error_of)
        settings = ours["settings"].replace(", codebook_dtype=float32", "")
        theirs = rival["settings"].replace(" niter=100", "")
        found.append(
            (ours | {"name": f"`Codebook`, {settings}"}, rival | {"name": f"faiss, {theirs}"})
        )
    return found


def case_of(line: Line) -> tuple[Any, ...]:
    return line["matrix"], line["block_size"], line["n_atoms"], line["n_nonzero_coefs"]


def size_of(line: Line) -> tuple[Any, ...]:
    return line["matrix"], line["bits_per_weight"]


def error_of(line: Line) -> float:
    return float(line["error"])


def row_of(ours: Line, rival: Line) -> list[str]:
    cells = [NAMES[ours["matrix"]], f"{ours['bits_per_weight']:.2f}"]
    for line, form in ((ours, "**{}**"), (rival, "{}")):
        cells += [line["name"], form.format(f"{line['error']:.4f}"), duration(line["seconds"])]
    return cells
