"""Tables of networks with factored convolutions, from bench/experiments/convolutions's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report import markdown, place_of, time_of

RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS = {"large": "5 × 5, 64–128–256 channels", "resnet20": "ResNet-20"}


def accuracies_by_metric() -> list[str]:
    """Lines of Markdown: accuracy without further training, by what errors counted."""
    document = _document("convolutions_metrics")
    rows = document["rows"]
    metrics = list(dict.fromkeys(m for row in rows if row["method"] for m in row["accuracy"]))
    lines = []
    for network, name in NETWORKS.items():
        for row in (row for row in rows if row["network"] == network):
            found = row["accuracy"]
            if row["method"] is None:
                lines.append([name, "dense", _percent(found["dense"]), *[""] * (len(metrics) - 1)])
            else:
                method = f"`{row['method']}(ratio={row['ratio']:g})`"
                cells = [_percent(found[m]) if m in found else "" for m in metrics]
                lines.append([name, method, *cells])
    return [*markdown(["network", "convolutions by", *metrics], lines), "", _note(document)]


def speeds() -> list[str]:
    """Lines of Markdown: whole networks, how fast and how good."""
    document = _document("convolutions_speed")
    heads = ["network", "accuracy", "factored", "trained on", "smaller"]
    batches = list(document["rows"][0]["seconds"])
    heads += [f"ms for {n} dense, factored" for n in batches]
    heads += [f"times faster for {n}" for n in batches]
    lines = []
    for row in document["rows"]:
        times = [row["seconds"][n] for n in batches]
        lines.append(
            [
                NETWORKS[row["network"]],
                _percent(row["accuracy_dense"]),
                _percent(row["accuracy_before"]),
                _percent(row["accuracy"]),
                f"{row['bytes_dense'] / row['bytes']:.1f} ×",
                *(f"{dense:.2f}, {factored:.2f}" for dense, factored in times),
                *(f"{dense / factored:.2f}" for dense, factored in times),
            ]
        )
    return [*markdown(heads, lines), "", _note(document)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return document


def _note(document: dict[str, Any]) -> str:
    return f"<sub>{place_of(document)}; {time_of(document)}.</sub>"
