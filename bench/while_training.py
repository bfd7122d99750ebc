"""Tables of models compressed while they train, from bench/experiments/while_training's results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from report import markdown, place_of, time_of

Run = dict[str, Any]

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = {"cifar10": "images", "language": "language"}
SIZES = ("during", "late", "after")
TIMES = {
    "during": "during",
    "after a third": "after, as many steps",
    "late": "late",
    "after four fifths": "after, as many steps as late",
    "after, further": "after, more steps",
}
METHODS = {
    "low rank": "`LowRank`",
    "dictionary": "`Dictionary`",
    "k-means": "`Codebook` (k-means)",
    "k-means of vectors": "`Codebook` of vectors",
    "simhash": "`Simhash`",
    "pruning": "`Prune`",
    "gradual pruning": "`GradualPrune` by magnitude",
    "gradual pruning by gradients": "`GradualPrune` by gradients",
    "k-means + pruning": "`PruneCodebook` (k-means + pruning)",
    "entropy coded": "`EntropyCoded`",
    "deep compression": "`DeepCompression`",
}


def qualities_by_size() -> list[str]:
    """Lines of Markdown: each method's quality at each size, by when models are compressed."""
    document = _document("while_training")
    runs = [run for run in document["runs"] if run["seed"] == 0]
    heads = ["times smaller", "method"]
    heads += [f"{TASKS[task]}: {when}" for task in TASKS for when in SIZES]
    dense = [shown(_of(runs, task, method=None)) for task in TASKS]
    rows = [["1", "dense", dense[0], "", "", dense[1], "", ""]]
    for ratio in sorted({run["ratio"] for run in runs if run["ratio"]}):
        for method, name in METHODS.items():
            given = {"method": method, "ratio": ratio}
            cells = [
                shown(_of(runs, task, variant=when, **given)) for task in TASKS for when in SIZES
            ]
            if any(cells):
                rows.append([f"{ratio:.3g}", name, *cells])
    return [*markdown(heads, rows), "", _note(document)]


def qualities_by_time() -> list[str]:
    """Lines of Markdown: methods at one size, by when models are compressed, over the seeds."""
    document = _document("while_training")
    compared = [run for run in document["runs"] if run["variant"] == "after a third"]
    methods = dict.fromkeys((run["task"], run["method"], run["ratio"]) for run in compared)
    rows = []
    for task, method, ratio in sorted(
        methods, key=lambda each: (each[0], [*METHODS].index(each[1]))
    ):
        given = {"method": method, "ratio": ratio}
        found = [_of(document["runs"], task, variant=when, **given) for when in TIMES]
        rows.append([TASKS[task], METHODS[method], *map(shown, found)])
    return [*markdown(["data", "method", *TIMES.values()], rows), "", _note(document)]


def overheads() -> list[str]:
    """Lines of Markdown: milliseconds of a step with and without compression."""
    document = _document("while_training_overhead")
    heads = ["data", "stage", "method", "ms without", "ms with", "ratio of neighbours", "95 %"]
    rows = [
        [
            TASKS[step["task"]],
            step["stage"],
            METHODS[step["method"]] if "method" in step else "",
            f"{step['ms_without']:.1f}",
            f"{step['ms_with']:.1f}",
            f"{step['ratio']:.3f}",
            "{:.3f} to {:.3f}".format(*step["ratio_interval"]),
        ]
        for step in document["steps"]
    ]
    return [*markdown(heads, rows), "", _note(document)]


def tokens() -> list[str]:
    """Lines of Markdown: the time of a token of finished language models."""
    document = _document("while_training_tokens")
    models = document["models"]
    places = list(dict.fromkeys((row["width"], row["threads"]) for row in models))
    heads = [
        "model",
        *(f"width {width}, {threads} thread{'s'[: threads > 1]}" for width, threads in places),
    ]
    rows = []
    for name in dict.fromkeys(row["model"] for row in models):
        own = {(r["width"], r["threads"]): r for r in models if r["model"] == name}
        cells = [f"{own[at]['ms_a_token']:.2f} ms, {own[at]['of_dense']:.2f}" for at in places]
        rows.append([METHODS.get(name, name), *cells])
    return [*markdown(heads, rows), "", _note(document)]


def shown(runs: list[Run]) -> str:
    """Return the mean over seeds, and the least and the most of several; "" without a run."""
    if not runs:
        return ""
    values = sorted(run["test"] for run in runs)
    if runs[0]["measure"] == "accuracy":
        values, unit, form = [100 * value for value in values], " %", "{:.1f}"
    else:
        unit, form = "", "{:.0f}" if values[0] >= 100 else "{:.1f}"
    text = form.format(mean(values)) + unit
    if len(values) == 1:
        return text
    return f"{text} ({form.format(values[0])} to {form.format(values[-1])}, {len(values)} seeds)"


def _of(runs: Iterable[Run], task: str, **wanted: Any) -> list[Run]:
    return [
        run
        for run in runs
        if run["task"] == task and all(run[name] == value for name, value in wanted.items())
    ]


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return document


def _note(document: dict[str, Any]) -> str:
    place = place_of(document).rpartition(", ")[0]  # threads are said in the text or the table
    return f"<sub>{place}; {time_of(document)}.</sub>"
