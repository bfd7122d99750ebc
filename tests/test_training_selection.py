"""Patterns that choose the weights of a model."""

from __future__ import annotations

import re

import pytest
from fastfactor.methods import LowRank, Prune
from fastfactor.training.selection import Candidate, choose

RANK, SPARSE = LowRank(rank=2), Prune(sparsity=0.5)
MODEL = (
    Candidate("embed.weight", ("embed",)),
    Candidate("block.rnn.weight_ih", ("block.rnn",)),
    Candidate("block.rnn.weight_hh", ("block.rnn",)),
    Candidate("block.norm", ("block.norm",), refusal="must be linear", by_default=False),
    Candidate("block.norm.scale", owner="block.norm", refusal="must be wide", by_default=False),
    Candidate("position", owner="", by_default=False),
    Candidate("block.own.table", owner="block.own", by_default=False),
)
KNOWN = ["embed.weight", "block.rnn.weight_ih", "block.rnn.weight_hh"]


@pytest.mark.parametrize(
    ("compressor", "targets", "ignore", "expected"),
    [
        (RANK, None, None, KNOWN),
        (RANK, "*", None, KNOWN),
        (RANK, "block.*", None, [*KNOWN[1:]]),
        (RANK, None, "block.*", KNOWN[:1]),
        (RANK, ["*.weight_hh", "position"], None, ["block.rnn.weight_hh", "position"]),
        (RANK, "block.own.*", None, ["block.own.table"]),
        (RANK, "*n", "embed", ["block.rnn.weight_ih", "block.rnn.weight_hh", "position"]),
        ({"block.rnn": RANK}, None, None, KNOWN[1:]),
        ({"position": RANK}, None, None, ["position"]),
        ({"*": RANK}, "position", None, ["position"]),
        ({"embed": RANK, "position": RANK}, ["position"], None, ["position"]),
        ({"*": RANK, "block.own.table": SPARSE}, None, None, [*KNOWN, "block.own.table"]),
    ],
)
def test_what_patterns_choose(compressor, targets, ignore, expected):
    assert list(choose(MODEL, compressor, targets, ignore)) == expected


def test_the_last_pattern_decides():
    found = choose(MODEL, {"*": RANK, "block.*": SPARSE, "*_ih": RANK}, None, None)
    assert found == dict(zip(KNOWN, (RANK, RANK, SPARSE), strict=True))
    found = choose(MODEL, {"*_ih": RANK, "*": SPARSE}, None, None)
    assert set(found.values()) == {SPARSE}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            (RANK, "third", None),
            ValueError,
            "patterns must match names of layers or weights, got 't",
        ),
        ((RANK, None, "third"), ValueError, "got 'third'"),
        (({"third": RANK}, None, None), ValueError, "got 'third'"),
        ((RANK, "block.norm", None), TypeError, "layer 'block.norm' must be linear; leave it out"),
        ((RANK, "block.norm.scale", None), TypeError, "layer 'block.norm.scale' must be wide"),
        (({"*": RANK, "block.norm": SPARSE}, None, None), TypeError, "must be linear"),
        ((RANK, None, "*"), ValueError, "at least one layer must be compressed, got none"),
        (({}, None, None), ValueError, "at least one layer must be compressed, got none"),
        ((RANK, [3], None), TypeError, "targets must be patterns of names, got 3"),
        ((RANK, None, [None]), TypeError, "ignore must be patterns of names, got None"),
        (({3: RANK}, None, None), TypeError, "compressor must be patterns of names, got 3"),
        (({"*": "low_rank"}, None, None), TypeError, "compressor must be a method's settings"),
    ],
)
def test_what_patterns_cannot_mean(arguments, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        choose(MODEL, *arguments)


def test_a_known_layer_that_cannot_be_compressed_is_refused_by_default():
    bad = Candidate("table.weight", ("table",), refusal="must not be read-only")
    with pytest.raises(
        TypeError, match=r"layer 'table' must not be read-only; .*ignore=\['table'\]"
    ):
        choose((*MODEL, bad), RANK, None, None)
    assert "table.weight" not in choose((*MODEL, bad), RANK, None, "table")
    assert "table.weight" not in choose((*MODEL, bad), RANK, "*", None)
