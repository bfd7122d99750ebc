"""Size and quality of models that are compressed while they train, before, and after.

    python bench/experiments/while_training/run.py --cifar10 FOLDER --text FILE --folder WORK
    python bench/experiments/while_training/run.py --folder WORK --list
    python bench/experiments/while_training/run.py --folder WORK --collect

The first goes through a list of trainings, each on one thread, and writes a file for each into
WORK/runs. Stopped and started again it goes on with the first that has no file. The list begins
with what matters most. The second prints it, the third writes bench/results/while_training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from machine import describe  # noqa: E402

RESULTS = ROOT / "bench/results/while_training.json"
RATIOS = (15.2, 7.6, 30.4)  # with some room, so that codes of whole bits fit into 16, 8 and 32
EVERY_SIZE = ("late", "after", "during")  # when models of all sizes are compressed
SEEDS = (0, 1, 2)
TASKS = ("cifar10", "language")
METHODS = (
    "low rank",
    "dictionary",
    "k-means",
    "simhash",
    "pruning",
    "k-means + pruning",
    "entropy coded",
    "k-means of vectors",
    "deep compression",
)
GRADUAL = ("gradual pruning", "gradual pruning by gradients")
COMPARED = ("low rank", "dictionary", "k-means")  # during training and after, all seeds
TIMES = ("during", "after a third", "after, further", "late", "after four fifths")
SECONDS_A_STEP = {"cifar10": 0.09, "language": 0.06}  # estimated, on one thread
OTHER_SECONDS = 15  # start, factoring, files, test


@dataclass(frozen=True)
class Run:
    """One training. ``method`` is None for the dense model."""

    task: str
    seed: int
    method: str | None = None
    ratio: float | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        parts = [self.task, self.seed, self.method, self.ratio, self.variant]
        return "-".join(str(p).replace(" ", "_") for p in parts if p is not None)


def all_runs() -> list[Run]:
    """The runs in their order; each is there once."""
    return list(dict.fromkeys(in_rounds()))


def in_rounds() -> Iterator[Run]:
    for seed, times in ((0, TIMES), (1, TIMES[:2]), (2, TIMES[:2]), (1, TIMES), (2, TIMES)):
        for task in TASKS:
            yield Run(task, seed)
            for method in COMPARED:
                for when in times:
                    yield Run(task, seed, method, RATIOS[0], when)
        if seed == 0:
            yield from sizes(RATIOS[:1], ("late", "after"))
    for ratio in RATIOS:
        yield from sizes([ratio], EVERY_SIZE[:2])
    yield from sizes(RATIOS, EVERY_SIZE[2:])
    for task in TASKS:
        yield Run(task, 0, "low rank", RATIOS[0], "from the start")


def sizes(ratios: Iterable[float], times: tuple[str, ...]) -> Iterator[Run]:
    """All methods, at some sizes and times; what is pruned step by step is so before the end."""
    for ratio in ratios:
        for method in (*METHODS, *GRADUAL):
            for task in TASKS:
                for when in times:
                    if not (method in GRADUAL and when == "after"):
                        yield Run(task, 0, method, ratio, when)


def estimate(run: Run) -> float:
    """Seconds that a run should take."""
    shares = {None: 1, "from the start": 1, "late": 0.2, "after four fifths": 0.2, "after": 0}
    n_steps = {"cifar10": 1404, "language": 1500}[run.task]
    share = shares.get(run.variant, 2 / 3)
    return round(share * n_steps * SECONDS_A_STEP[run.task] + OTHER_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="working files and results")
    parser.add_argument("--cifar10", type=Path, help="folder with train.npz and test.npz")
    parser.add_argument("--text", type=Path, help="the novels, in one file")
    parser.add_argument("--list", action="store_true", help="what is done and what is not")
    parser.add_argument("--collect", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--one", help="the name of the only run to do, in this process")
    args = parser.parse_args()
    runs = {run.name: run for run in all_runs()}
    if args.list:
        show(runs, args.folder)
    elif args.collect:
        collect(runs, args.folder)
    elif args.one:
        result = done(runs[args.one], args)
        write_whole(file_of(args.folder, args.one), json.dumps(result, indent=1) + "\n")
    else:
        for name in runs:
            if not file_of(args.folder, name).exists():
                subprocess.run([sys.executable, *sys.argv, "--one", name], check=False)


def done(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Do a run; return its result."""
    began = time.perf_counter()
    import compressors  # none of which is needed to list and to collect
    import torch
    import training
    from cifar import Cifar
    from fastfactor import store
    from fastfactor.torch import load_compressed
    from language import Language

    torch.set_num_threads(1)
    args.folder.joinpath("runs").mkdir(parents=True, exist_ok=True)
    kinds = {"cifar10": (Cifar, args.cifar10), "language": (Language, args.text)}
    kind, source = kinds[run.task]
    task = kind(source, args.folder, run.seed)
    path = args.folder / f"{run.name}.safetensors"
    result: dict[str, Any] = asdict(run)
    if run.method is None:
        trained = training.train_dense(task, args.folder)
        model = trained.model
        store.save(path, {name: t.numpy() for name, t in model.state_dict().items()})
        weights = [model.get_submodule(name).weight for name in task.targets]
        result["bytes"] = sum(w.numel() * w.element_size() for w in weights)
        model = task.new_model()
        with store.open_store(path) as file:
            model.load_state_dict({name: torch.from_numpy(file[name].copy()) for name in file})
    else:
        make, share = compressors.METHODS[run.method]
        method = make(run.ratio)
        trained, compression, factoring = training.train_compressed(
            task, method, share, run.variant, args.folder
        )
        result |= {"settings": f"{method!r}", "share": share, "seconds_factoring": factoring}
        result["bytes"] = sum(layer.bytes_factors or 0 for layer in compression.report())
        compression.to_store(path)
        model = load_compressed(task.new_model(), path)
    result["bytes_of_file"] = path.stat().st_size
    path.unlink()
    result["measure"] = task.measure
    for part in ("validation", "test"):
        result[part] = task.quality(model, part)
    return result | {
        "loss": sum(trained.losses) / len(trained.losses),
        "seconds_training": round(trained.seconds, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "seconds_estimated": estimate(run),
        "about": describe(),
    }


def file_of(folder: Path, name: str) -> Path:
    return folder / "runs" / f"{name}.json"


def write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def show(runs: dict[str, Run], folder: Path) -> None:
    for name, run in runs.items():
        path = file_of(folder, name)
        found = json.loads(path.read_text("utf-8")) if path.exists() else None
        text = "" if found is None else f"{found['seconds']:6.0f} s {found['test']:10.4f}"
        print(f"{name:60} {estimate(run):4} s estimated {text}")


def collect(runs: dict[str, Run], folder: Path) -> None:
    """Write all results in one file; what all have in common is there once."""
    found = [
        json.loads(path.read_text("utf-8"))
        for path in (file_of(folder, name) for name in runs)
        if path.exists()
    ]
    missing = [name for name in runs if not file_of(folder, name).exists()]
    about = found[0]["about"]
    commits = sorted({each["about"]["commit"]["id"] for each in found})
    for each in found:
        each["commit"] = commits.index(each.pop("about")["commit"]["id"])
    head = json.dumps(about | {"threads": 1, "commits": commits}, indent=1).removesuffix("\n}")
    lines = ",\n".join(map(json.dumps, found))
    text = f'{head},\n "not_run": {json.dumps(missing)},\n "runs": [\n{lines}\n]}}\n'
    write_whole(RESULTS, text)


if __name__ == "__main__":
    main()
