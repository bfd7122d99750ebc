"""Settings for `fastfactor demo`: bytes, error and digits right for each method, over three seeds.

    python bench/experiments/demo_settings.py

Each line changes one thing against the settings of the demonstration. The digits are the packaged
ones, so that a difference of two or three digits means nothing: the seeds show how much they move.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastfactor import demo
from fastfactor.demo import CodebookSettings, DictionarySettings

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/demo_settings.json")
    args = parser.parse_args()
    dense = demo.load_model()
    digits, labels = demo.load_digits()
    lines = []
    for name, compress, seeds in variants():
        networks = [
            compress(dense, random_state=seed) if seeds else compress(dense)
            for seed in (SEEDS if seeds else SEEDS[:1])
        ]
        line = {
            "variant": name,
            "bytes": [network.nbytes for network in networks],
            "relative_error": [round(demo.relative_error(dense, n), 4) for n in networks],
            "right": [demo.count_right(n, digits, labels) for n in networks],
        }
        print(f"{name:40} {line['bytes']} {line['relative_error']} {line['right']}", flush=True)
        lines.append(line)
    args.json.write_text(json.dumps(lines, indent=2) + "\n")


def variants():
    """(name, method with its settings, whether it draws random numbers)."""
    first, second, _ = demo.DICTIONARY
    for patch in ((2, 2), (4, 4), (7, 7), (14, 14), (28, 28)):
        for tolerance in (0.15, 0.25):
            changed = replace(first, patch=patch, tolerance=tolerance)
            yield dictionary(f"first layer {patch}, tolerance {tolerance}", changed, second)
    for n_atoms in (32, 128, 256):
        yield dictionary(f"first layer {n_atoms} atoms", replace(first, n_atoms=n_atoms), second)
    for size in (10, 20, 50, 300):
        changed = replace(second, patch=(1, size))
        yield dictionary(f"second layer pieces of {size}", first, changed)
    for n_rounds in (1, 3, 30):
        yield dictionary(
            f"{n_rounds} rounds",
            replace(first, n_rounds=n_rounds),
            replace(second, n_rounds=n_rounds),
        )
    last = CodebookSettings(16)
    for n_clusters, block_size in ((16, 1), (16, 2), (256, 1), (256, 2), (256, 4)):
        one = CodebookSettings(n_clusters, block_size)
        name = f"codebook {n_clusters} × {block_size}"
        yield name, partial(demo.by_codebook, settings=(one, one, last)), True
    for sparsity in (0.8, 0.85, 0.9, 0.95):
        settings = (sparsity, sparsity, None)
        yield f"pruning {sparsity:.0%}", partial(demo.by_pruning, settings=settings), False


def dictionary(name: str, first: DictionarySettings, second: DictionarySettings):
    settings = (first, second, None)
    return f"dictionary, {name}", partial(demo.by_dictionary, settings=settings), True


if __name__ == "__main__":
    main()
