"""A language model of words on novels: what is compressed, and how good it is.

Words and marks in lower case; those that are not among the 9,999 most frequent of the training
part are one token. The text is cut into 100 pieces: of each 20, one is for the test and one for
validation.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

VOCABULARY, WIDTH = 10_000, 128
BATCH, LENGTH = 10, 35
PIECES, EVERY = 100, 20
Carry = tuple[torch.Tensor, torch.Tensor]


class Language:
    """The task: its data, its model, its loss at a step."""

    name = "language"
    measure = "perplexity"
    n_steps = 1_500
    learning_rate = 4e-3
    max_norm = 1.0  # of gradients
    targets = ("embedding", "output")

    def __init__(self, source: Path, cache: Path, seed: int) -> None:
        self.seed = seed
        text = source.read_text(encoding="utf-8").lower()
        pieces = np.array_split(np.array(re.findall(r"[a-z]+(?:'[a-z]+)?|[^\sa-z]", text)), PIECES)
        train = [p for i, p in enumerate(pieces) if i % EVERY not in (9, 19)]
        frequent = Counter(np.concatenate(train).tolist()).most_common(VOCABULARY - 1)
        self.ids = {word: number for number, (word, _) in enumerate(frequent, 1)}
        order = np.random.default_rng(seed).permutation(len(train))
        self.train = in_lanes(self._encoded([train[i] for i in order]), BATCH)
        self.parts = {
            "validation": in_lanes(self._encoded(pieces[9::EVERY]), 40),
            "test": in_lanes(self._encoded(pieces[19::EVERY]), 40),
        }

    def _encoded(self, pieces: list[np.ndarray]) -> torch.Tensor:
        return torch.tensor([self.ids.get(word, 0) for p in pieces for word in p.tolist()])

    def new_model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return Network()

    def loss(self, model: nn.Module, step: int, carry: Carry | None) -> tuple[torch.Tensor, Carry]:
        at = step * LENGTH % (len(self.train) - LENGTH)
        words = self.train[at : at + LENGTH + 1]
        scores, (h, c) = model(words[:-1], carry)
        return functional.cross_entropy(scores, words[1:].flatten()), (h.detach(), c.detach())

    def quality(self, model: nn.Module, part: str) -> float:
        """The perplexity."""
        words, carry, total, count = self.parts[part], None, 0.0, 0
        with torch.no_grad():
            for at in range(0, len(words) - 1, LENGTH):
                piece = words[at : at + LENGTH + 1]
                scores, carry = model(piece[:-1], carry)
                total += float(
                    functional.cross_entropy(scores, piece[1:].flatten(), reduction="sum")
                )
                count += piece[1:].numel()
        return float(np.exp(total / count))


class Network(nn.Module):
    """An embedding, one LSTM and an output layer, 2.7 million weights."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width)
        self.output = nn.Linear(width, VOCABULARY)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def forward(self, words: torch.Tensor, carry: Carry | None) -> tuple[torch.Tensor, Any]:
        hidden, carry = self.lstm(self.embedding(words), carry)
        return self.output(hidden.flatten(0, 1)), carry


def in_lanes(words: torch.Tensor, n: int) -> torch.Tensor:
    """Words (length, n): n parts of the text beside each other."""
    length = len(words) // n
    return words[: length * n].reshape(n, length).T.contiguous()
