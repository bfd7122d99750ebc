"""The obvious forms of bit packing, gap coding and Huffman coding."""

from __future__ import annotations

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
