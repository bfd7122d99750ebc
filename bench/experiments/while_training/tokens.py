"""Milliseconds a token of finished language models, dense and compressed, on a processor.

    python bench/experiments/while_training/tokens.py

One token after the other, with the LSTM's state from one to the next: what a text that is being
written costs. Models take turns. The weights are random; LSTM, embedding and output layer are
compressed. Writes bench/results/while_training_tokens.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RESULTS = ROOT / "bench/results/while_training_tokens.json"
WIDTHS = (128, 650)
VOCABULARY = 10_000
THREADS = (1, 2)
TOKENS, ROUNDS = 20, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--width", type=int, help="measure this one here, and print it")
    args = parser.parse_args()
    if args.width:
        print(json.dumps(measured(args.width)))
        return
    rows = []
    for threads in THREADS:
        for width in WIDTHS:
            done = subprocess.run(
                [sys.executable, __file__, "--width", str(width)],
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
                stdout=subprocess.PIPE,
                check=True,
            )
            rows += [{"threads": threads} | row for row in json.loads(done.stdout)]
            print(*rows[-len(json.loads(done.stdout)) :], sep="\n", flush=True)
    head = json.dumps(describe(), indent=1).removesuffix("\n}")
    lines = ",\n".join(map(json.dumps, rows))
    args.json.write_text(f'{head},\n "models": [\n{lines}\n]}}\n', encoding="utf-8")


def measured(width: int) -> list[dict[str, Any]]:
    """Time all models of a width in turns."""
    import torch  # after the number of threads is set
    from fastfactor.methods import Codebook, EntropyCoded, LowRank, PruneCodebook
    from fastfactor.torch import apply_compression
    from language import Network

    methods = {
        "dense": None,
        "low rank": LowRank(ratio=8),
        "k-means": Codebook(n_bits=4, granularity="row"),
        "k-means + pruning": PruneCodebook(sparsity=0.9, n_bits=4),
        "entropy coded": EntropyCoded(ratio=8),
    }
    models, nbytes = {}, {}
    for name, method in methods.items():
        torch.manual_seed(0)
        model = Network(width)
        nbytes[name] = sum(p.nbytes for p in model.parameters())
        if method is not None:
            compression = apply_compression(model, method)
            compression.step()
            model = compression.finalize()
            saved = sum(r.bytes_dense - (r.bytes_factors or 0) for r in compression.report())
            nbytes[name] -= saved
        models[name] = model.eval()
    words = torch.randint(VOCABULARY, (TOKENS, 1, 1), generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, model in models.items():
                carry = None
                for word in words:
                    began = time.perf_counter()
                    _, carry = model(word, carry)
                    times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(samples[TOKENS:]) for name, samples in times.items()}
    return [
        {
            "width": width,
            "model": name,
            "bytes": nbytes[name],
            "ms_a_token": round(1e3 * median, 4),
            "of_dense": round(median / medians["dense"], 3),
        }
        for name, median in medians.items()
    ]


if __name__ == "__main__":
    main()
