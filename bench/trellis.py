"""Trellis-coded levels: chosen, coded and decoded, against constriction's coder on the same levels.

The rival is given what our decoder works out, the context of every level, and codes the levels of
each context as one array with one model: the fastest that its interface has, whose words no row can
be read from alone. What it decodes are symbols; ours are what these stand for. One thread each, and
ours on two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from cases import Contestant, Job, Target, Workload, at_every_level, burst, level_in_use
from numpy.typing import NDArray

DECODE, ENCODE, QUANTIZE = "decode", "encode", "quantize"
TWO_THREADS, ONE_ROW = "decode, 2 threads", "one row"
RIVAL = "constriction, categorical"
BLOCK_ROWS, STEP, RATE_WEIGHT, CLASSES = 32, 0.4, 0.3, 8


class Case(NamedTuple):
    """A table whose rows differ in scale, and levels for it at about 2 bits."""

    values: NDArray[np.float32]
    row_logs: NDArray[np.int32]
    classes: Any
    levels: NDArray[np.int32]
    contexts: NDArray[np.uint8]
    frequencies: NDArray[np.uint16]
    squares: float  # error of the levels


def workloads(quick: bool) -> list[Workload]:
    rows = 512 if quick else 8192
    return [
        Workload(
            "trellis",
            "table",
            f"trellis-coded levels of {rows:,} × 256, {CLASSES} classes",
            {"rows": rows, "cols": 256},
            (*at_every_level(fastfactor), Contestant(RIVAL, constriction)),
            (
                Target(DECODE, (RIVAL,), at_least=4),
                Target(ENCODE, (RIVAL,), at_least=1),
                # Ours holds the scales of rows too, and every block can be read alone.
                Target(DECODE, (RIVAL,), figure="bits a level", at_most=1.01),
                Target(TWO_THREADS, ("fastfactor",), rival_measure=DECODE, at_least=1.8),
            ),
        )
    ]


def fastfactor(workload: Workload) -> Job:
    from fastfactor.kernels.trellis import TrellisDecoder, trellis_encode, trellis_quantize

    case = case_of(workload)
    n_rows = len(case.values)
    classes, centers = case.classes, np.zeros((2 * CLASSES, 3), np.float32)
    bits = np.zeros((2 * CLASSES, 112), np.float32)
    weights = np.broadcast_to(np.float32(1), case.values.shape)
    arguments = (case.values, STEP, weights, case.row_logs, classes, bits, centers, RATE_WEIGHT)

    def encode() -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        return trellis_encode(
            case.levels,
            case.row_logs,
            classes,
            case.frequencies,
            block_rows=BLOCK_ROWS,
            n_threads=1,
        )

    words, lengths = encode()
    decoder = TrellisDecoder(words, lengths, n_rows, BLOCK_ROWS, classes, case.frequencies, centers)
    every, last = np.arange(n_rows), np.array([BLOCK_ROWS - 1])

    def is_right() -> bool:
        away = case.values / np.float32(STEP) - decoder.rows(every)
        return bool(np.isclose(np.sum(away.astype(np.float64) ** 2), case.squares))

    return job(
        case,
        words.nbytes + lengths.size * 2,
        {
            DECODE: lambda: decoder.rows(every, n_threads=1),
            TWO_THREADS: lambda: decoder.rows(every, n_threads=2),
            ONE_ROW: lambda: decoder.rows(last, n_threads=1),
            ENCODE: encode,
            QUANTIZE: lambda: trellis_quantize(*arguments, n_threads=1),
        },
        is_right,
        note=level_in_use(),
    )


def constriction(workload: Workload) -> Job:
    from constriction import stream

    case = case_of(workload)
    parts = []
    for context in range(2 * CLASSES):
        symbols = symbols_of(case.levels[case.contexts == context])
        shares = case.frequencies[context, : int(symbols.max(initial=0)) + 1]
        if len(symbols):
            parts.append(
                (symbols, stream.model.Categorical(shares.astype(np.float32), perfect=False))
            )

    def encode() -> NDArray[np.uint32]:
        coder = stream.stack.AnsCoder()
        for symbols, model in parts:
            coder.encode_reverse(symbols, model)
        found: NDArray[np.uint32] = coder.get_compressed()
        return found

    def decode() -> list[NDArray[np.int32]]:
        coder = stream.stack.AnsCoder(data)
        return [coder.decode(model, len(symbols)) for symbols, model in reversed(parts)]

    data = encode()

    def is_right() -> bool:
        pairs = zip(decode(), reversed(parts), strict=True)
        return all(np.array_equal(found, symbols) for found, (symbols, _) in pairs)

    return job(case, data.nbytes, {DECODE: decode, ENCODE: encode}, is_right)


def job(
    case: Case,
    nbytes: int,
    calls: dict[str, Callable[[], object]],
    is_right: Callable[[], bool],
    *,
    note: str = "",
) -> Job:
    """Times of the calls; beside decoding what the streams take."""

    def quality() -> dict[str, dict[str, float]]:
        if not is_right():
            raise ValueError("what was decoded must be what was encoded, got something else")
        return {DECODE: {"bits a level": 8 * nbytes / case.levels.size}}

    levels = dict.fromkeys(calls, case.levels.size) | {ONE_ROW: 256 * BLOCK_ROWS}
    return Job(
        {(name, "cold"): burst(call) for name, call in calls.items()},
        quality,
        {name: {"G levels": levels[name] / 1e9} for name in calls},
        note,
    )


def case_of(workload: Workload) -> Case:
    from fastfactor.kernels.trellis import Classes, trellis_quantize

    shape = int(workload.sizes["rows"]), int(workload.sizes["cols"])
    random = np.random.default_rng(23)
    row_logs = np.clip(np.rint(2 * random.standard_normal(shape[0]) + 4), 0, 7).astype(np.int32)
    scales = 2 ** (row_logs[:, None] / np.float32(4) - 1)
    values = random.standard_normal(shape, dtype=np.float32) * scales
    classes = Classes(np.zeros(shape[1], np.int8), 0, CLASSES)
    free = np.zeros((2 * CLASSES, 112), np.float32), np.zeros((2 * CLASSES, 3), np.float32)
    weights = np.broadcast_to(np.float32(1), shape)
    found = trellis_quantize(values, STEP, weights, row_logs, classes, *free, RATE_WEIGHT)
    assert found.levels is not None
    contexts = 2 * row_logs[:, None] + quantizers(found.levels)
    scales_of_rows = np.bincount(row_logs, minlength=112)[None]
    frequencies = frequencies_of(np.concatenate([found.counts, scales_of_rows]))
    squares = float(found.sums[..., 2].sum())
    return Case(
        values, row_logs, classes, found.levels, contexts.astype(np.uint8), frequencies, squares
    )


def quantizers(levels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of every level, from the parities of those before it: the code's lowest state bit."""
    result = np.empty(levels.shape, np.int64)
    state = np.zeros(len(levels), np.int64)
    for column in range(levels.shape[1]):
        result[:, column] = state & 1
        state = state >> 1 ^ 33 * (state & 1) ^ 10 * (levels[:, column] & 1)
    return result


def symbols_of(levels: NDArray[np.int32]) -> NDArray[np.int32]:
    """0, 1, −1, 2, … as 0, 1, 2, 3, …"""
    return np.where(levels > 0, 2 * levels - 1, -2 * levels).astype(np.int32)


def frequencies_of(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Of 2**14, from counts of magnitudes; both signs are alike."""
    symbols = np.repeat(counts, 2, axis=1)[:, 1:] / 2
    symbols[:, 0] *= 2
    shares = symbols / np.maximum(symbols.sum(axis=1, keepdims=True), 1)
    table = np.maximum((shares * 2**14).astype(np.int64), symbols > 0)
    table[np.arange(len(table)), table.argmax(axis=1)] += 2**14 - table.sum(axis=1)
    return table.astype(np.uint16)
