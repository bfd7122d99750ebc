"""Settings for `fastfactor demo`: bytes, error and digits right for each form, and what is near.

    python bench/experiments/demo_settings.py

Each form's first line is the demonstration's own settings; the others are near by, so that what
more or less would do can be seen. Forms that draw random numbers are tried with three
seeds. The digits are the packaged thousand, which say little about small differences: 3 digits are
one standard deviation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fastfactor.demo import run as demo
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    DeepCompression,
    Dictionary,
    EntropyCoded,
    LowRank,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/demo_settings.json")
    args = parser.parse_args()
    dense = demo.load_model()
    digits, labels = demo.load_digits()
    lines = []
    for form, layers in tried():
        networks = [dense.compress(seeded) for seeded in with_seeds(layers)]
        line = {
            "form": form,
            "layers": [said(settings) for settings in layers],
            "chosen": layers == demo.FORMS[form].layers,
            "bytes": [sum(layer.nbytes for layer in n.layers) for n in networks],
            "relative_error": [round(demo.relative_error(dense, n), 4) for n in networks],
            "right": [int((demo.read_digits(n, digits) == labels).sum()) for n in networks],
        }
        print(
            f"{form:18} {'* ' if line['chosen'] else '  '}{' | '.join(line['layers']):110} "
            f"{line['bytes']} {line['relative_error']} {line['right']}",
            flush=True,
        )
        lines.append(line)
    args.json.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")


def tried() -> Iterator[tuple[str, tuple[Any, Any, Any]]]:
    """(form, settings of its layers), the demonstration's own first."""
    for name, form in demo.FORMS.items():
        yield name, form.layers
        for first, second in NEAR[name]:
            yield name, (first, second, form.layers[2])


def with_seeds(layers: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if not any("random_state" in names(settings) for settings in layers):
        yield layers
        return
    for seed in SEEDS:
        yield tuple(
            replace(s, random_state=seed) if "random_state" in names(s) else s for s in layers
        )


def names(settings: Any) -> list[str]:
    return [] if settings is None else [field.name for field in fields(settings)]


def said(settings: Any) -> str:
    """Settings as they would be written: those that are not the default."""
    if settings is None:
        return "dense"
    given = (
        f"{field.name}={getattr(settings, field.name)!r}"
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    )
    return f"{type(settings).__name__}({', '.join(given)})"


def dictionaries(
    block_error: float = 0.3, block_size: int = 56, n_atoms: int | None = 32, **others: Any
) -> tuple[Dictionary, Dictionary]:
    return (
        Dictionary(block_error=block_error, block_size=block_size, n_atoms=n_atoms, **others),
        Dictionary(block_error=block_error, block_size=50, n_atoms=32, **others),
    )


def both(settings: Any) -> tuple[Any, Any]:
    return settings, settings


# Settings of the first two layers, from less to more.
NEAR = {
    "low rank": [
        (LowRank(rank=first), LowRank(rank=second))
        for first, second in ((30, 10), (35, 10), (50, 10), (40, 5), (40, 20))
    ],
    "dictionary": [
        dictionaries(block_error=0.4),
        dictionaries(block_error=0.2),
        *(dictionaries(block_size=block_size) for block_size in (28, 98, 196)),
        *(dictionaries(n_atoms=n_atoms) for n_atoms in (16, 64, 128, None)),
        dictionaries(max_iter=5),
    ],
    "codebook, 4 bits": [both(Codebook(n_bits=n_bits)) for n_bits in (1, 2, 3, 5)],
    "codebook, vectors": [
        (Codebook(n_bits=8, vector_dim=dim), Codebook(n_bits=n_bits, vector_dim=4))
        for dim, n_bits in ((2, 6), (4, 6), (8, 5), (8, 8))
    ],
    "sum of codebooks": [
        (
            Codebook(n_bits=n_bits, vector_dim=8, n_codebooks=n_codebooks),
            Codebook(n_bits=5, vector_dim=4, n_codebooks=2),
        )
        for n_bits, n_codebooks in ((5, 2), (6, 2), (8, 2), (4, 3))
    ],
    "entropy coded": [
        (EntropyCoded(bits_per_weight=first), EntropyCoded(bits_per_weight=second))
        for first, second in ((0.5, 1), (1, 1.5), (2, 2))
    ],
    "pruned": [both(Prune(sparsity=share)) for share in (0.8, 0.9, 0.95)],
    "pruned + codebook": [
        both(PruneCodebook(sparsity=share, n_bits=n_bits))
        for share, n_bits in ((0.8, 4), (0.9, 4), (0.85, 3), (0.85, 5))
    ],
    "deep compression": [
        both(DeepCompression(sparsity=share, n_bits=n_bits))
        for share, n_bits in ((0.8, 4), (0.9, 4), (0.85, 3), (0.85, 5))
    ],
    "simhash": [
        (Simhash(n_hashes=first, axis=axis), Simhash(n_hashes=second, axis=axis))
        for first, second, axis in ((512, 512, 0), (768, 512, 0), (2048, 512, 0), (1024, 512, 1))
    ],
    "block projection": [
        (
            BlockProjection(
                reduction=reduction, block_in=block_in, block_out=block_out, learned=True
            ),
            BlockProjection(reduction=2, block_in=50, block_out=1, learned=True),
        )
        for reduction, block_in, block_out in (
            *((4, 28, 1), (5, 28, 1), (7, 28, 1), (9, 28, 1)),
            *((14, 56, 1), (14, 112, 1), (2, 56, 100)),
        )
    ],
    "block diagonal": [
        (BlockDiagonal(n_blocks=n_blocks, permute=permute), None)
        for n_blocks, permute in ((2, False), (3, True), (4, True))
    ],
    "mixed blocks": [
        *(
            (
                MixedBlock(rank=rank, block_shape=(1, 28)),
                MixedBlock(rank=30, block_shape=(1, 100)),
            )
            for rank in (3, 4, 6)
        ),
        (MixedBlock(rank=40), MixedBlock(rank=30, block_shape=(1, 100))),
        (MixedBlock(rank=5, block_shape=(1, 28)), MixedBlock(rank=40)),
    ],
}


if __name__ == "__main__":
    main()
