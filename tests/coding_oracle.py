"""The obvious forms of bit packing, gap coding and Huffman coding."""

from __future__ import annotations

import functools
import heapq

import numpy as np


def pack(codes, n_bits):
    """(n_codebooks, rows, n) codes → (rows, n_codebooks · bytes a row), by a string of digits."""
    rows = []
    for row in range(codes.shape[1]):
        packed = b""
        for book in codes[:, row]:
            digits = "".join(format(int(code), f"0{n_bits}b")[::-1] for code in book)
            digits += "0" * (-len(digits) % 8)
            packed += bytes(int(digits[i : i + 8][::-1], 2) for i in range(0, len(digits), 8))
        rows.append(np.frombuffer(packed, np.uint8))
    width = codes.shape[0] * -(-codes.shape[2] * n_bits // 8)
    return np.array(rows, np.uint8).reshape(len(rows), width)


def limited_cost(counts, max_length):
    """The least Σ count · length of a prefix code with no length above max_length.

    By dynamic programming over the number of nodes on each level of the tree, from the root down: a
    level has `open` nodes, of which the heaviest unplaced letters take some as leaves, and the rest
    have two children each. Letters by falling count take rising lengths.
    """
    weights = sorted((int(c) for c in counts if c), reverse=True)
    n = len(weights)
    prefix = np.concatenate([[0], np.cumsum(weights)])

    @functools.cache
    def best(level, placed, open_nodes):
        if placed == n:
            return 0
        if level > max_length:
            return float("inf")
        # Every letter not yet placed pays for this level.
        here = int(prefix[n] - prefix[placed])
        least = float("inf")
        for leaves in range(min(open_nodes, n - placed) + 1):
            inner = open_nodes - leaves
            if placed + leaves < n and inner == 0:
                continue
            least = min(least, best(level + 1, placed + leaves, min(2 * inner, n)))
        return here + least

    return best(1, 0, min(2, n))


def huffman_cost(counts):
    """The same without a limit, by merging the two lightest (Huffman, 1952)."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def entropy(symbols):
    """Bits for each symbol."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def gap_fields(positions, n_bits):
    """Fields and which of them are fillers, one position at a time."""
    fields, fillers, last = [], [], -1
    for position in np.asarray(positions).tolist():
        while position - last > 2**n_bits:
            fillers.append(len(fields))
            fields.append(2**n_bits - 1)
            last += 2**n_bits
        fields.append(position - last - 1)
        last = position
    return fields, fillers


def gap_fields_with_escapes(positions, n_bits):
    """Fields and which of them are escapes, one position at a time."""
    fields, escapes, last = [], [], -1
    largest = 2**n_bits - 1
    for position in np.asarray(positions).tolist():
        zeros = position - last - 1
        while zeros >= largest:
            escapes.append(len(fields))
            fields.append(largest)
            zeros -= largest
        fields.append(zeros)
        last = position
    return fields, escapes
