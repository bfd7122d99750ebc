from __future__ import annotations

import itertools

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError
from fastfactor.methods import BlockDiagonal, BlockDiagonalFactors
from fastfactor.methods.structured.block_diagonal import _assign


class TestBlockDiagonal(MethodContract):
    METHODS = (BlockDiagonal(n_blocks=4), BlockDiagonal(n_blocks=7))


class TestNeighbours(MethodContract):
    METHODS = (BlockDiagonal(n_blocks=4, permute=False), BlockDiagonal(n_blocks=5, permute=False))

    def test_importance_is_minimised_or_refused(self, method):
        """What is kept is exact, so that there is nothing that an importance could change."""
        W = self.matrix()
        importance = np.random.default_rng(5).random(W.shape)
        weighted = method.compress(W, importance=importance)
        np.testing.assert_array_equal(weighted.to_dense(), method.compress(W).to_dense())


def hidden_blocks(rng, shape, n_blocks):
    """A block-diagonal matrix whose rows and columns were shuffled."""
    rows, columns = (rng.permutation(np.arange(n) % n_blocks) for n in shape)
    W = rng.standard_normal(shape) * (rows[:, None] == columns)
    return W.astype(np.float32), rows, columns


@pytest.mark.parametrize(("shape", "n_blocks"), [((60, 90), 5), ((61, 95), 6), ((80, 120), 20)])
def test_hidden_blocks_are_found(rng, shape, n_blocks):
    W, rows, columns = hidden_blocks(rng, shape, n_blocks)
    noisy = W + 0.05 * rng.standard_normal(shape).astype(np.float32)
    hidden = np.sum(noisy[rows[:, None] == columns] ** 2) / np.sum(noisy**2)
    assert 1 - BlockDiagonal(n_blocks=n_blocks).compress(noisy).error(noisy) > 0.97 * hidden
    assert 1 - BlockDiagonal(n_blocks=n_blocks, permute=False).compress(noisy).error(noisy) < 0.5


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize(("shape", "n_blocks"), [((24, 32), 4), ((25, 31), 7), ((9, 5), 5)])
def test_what_is_kept_is_as_it_was_and_the_rest_zero(rng, shape, n_blocks, permute):
    W = rng.standard_normal(shape).astype(np.float32)
    factors = BlockDiagonal(n_blocks=n_blocks, permute=permute).compress(W)
    dense = factors.to_dense()
    kept = dense != 0
    np.testing.assert_array_equal(dense[kept], W[kept])
    sizes = [np.sort([len(part) for part in np.array_split(np.arange(n), n_blocks)]) for n in shape]
    np.testing.assert_array_equal(np.sort(np.unique(kept.sum(axis=1))), np.unique(sizes[1]))
    assert kept.sum() == factors.values.size == sizes[0] @ sizes[1]
    if not permute:
        groups = [np.array_split(np.arange(n), n_blocks) for n in shape]
        for rows, columns in zip(*groups, strict=True):
            assert kept[np.ix_(rows, columns)].all()
        assert set(factors.tensors()) == {"values"}


def test_blocks_are_the_best_under_a_covariance(rng):
    W = rng.standard_normal((12, 20))
    x = rng.standard_normal((100, 20)) @ rng.standard_normal((20, 20))
    covariance = x.T @ x / 100
    factors = BlockDiagonal(n_blocks=3).compress(W, input_covariance=covariance)
    best = factors.error(W, input_covariance=covariance)
    for at in range(factors.values.size):
        for change in (-0.01, 0.01):
            values = factors.values.copy()
            values[at] += change
            other = BlockDiagonalFactors(
                values=values,
                row_labels=factors.row_labels,
                column_labels=factors.column_labels,
                n_blocks=3,
                shape=W.shape,
                dtype=W.dtype,
            )
            assert other.error(W, input_covariance=covariance) > best


def test_an_importance_chooses_what_is_kept(rng):
    W, rows, columns = hidden_blocks(rng, (40, 60), 4)
    hidden = rows[:, None] == columns
    importance = np.where(hidden, 1.0, 0.002)
    loud = np.where(hidden, W, 5 * rng.standard_normal(W.shape))
    chosen = BlockDiagonal(n_blocks=4).compress(loud, importance=importance).to_dense() != 0
    plain = BlockDiagonal(n_blocks=4).compress(loud).to_dense() != 0
    assert np.mean(chosen == hidden) > 0.95
    assert np.mean(plain == hidden) < 0.8


def test_groups_are_close_to_the_best_there_are(rng):
    """Against every way to put six rows into three groups of two."""
    ways = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
    ratios = []
    for _ in range(30):
        gains = rng.random((6, 3))
        labels, total = _assign(gains, np.array([2, 2, 2]))
        assert (np.bincount(labels) == 2).all()
        assert total == pytest.approx(gains[np.arange(6), labels].sum())
        ratios.append(total / max(gains[np.arange(6), list(way)].sum() for way in ways))
    assert np.mean(ratios) > 0.97


@pytest.mark.parametrize("shape", [(96, 128), (31, 17), (40, 300)])
def test_more_blocks_take_less(shape):
    W = np.ones(shape, np.float32)
    sizes = [
        BlockDiagonal(n_blocks=n, permute=False).compress(W).nbytes
        for n in range(1, min(shape) + 1)
    ]
    assert (np.diff(sizes) <= 0).all()


def test_many_groups_have_wider_labels(rng):
    W = rng.standard_normal((300, 300)).astype(np.float32)
    factors = BlockDiagonal(n_blocks=300).compress(W)
    assert factors.row_labels.dtype == np.uint16
    assert factors.nbytes == 300 * 4 + 2 * 300 * 2


def test_more_blocks_than_rows_are_refused():
    with pytest.raises(ValueError, match="n_blocks must be at most 3"):
        BlockDiagonal(n_blocks=4).compress(np.ones((3, 9)))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_matrices_without_weights(shape):
    factors = BlockDiagonal(n_blocks=1).compress(np.zeros(shape, np.float32))
    assert factors.to_dense().shape == shape
    assert factors.linear(np.ones((2, shape[1]), np.float32)).shape == (2, shape[0])


def test_labels_that_do_not_balance_are_refused(rng):
    factors = BlockDiagonal(n_blocks=4).compress(rng.standard_normal((24, 32)))
    for broken in (np.zeros(24, np.uint8), np.full(24, 2**32 - 1, np.uint32)):
        with pytest.raises(CorruptDataError, match="row_labels"):
            BlockDiagonalFactors.from_tensors(
                factors.tensors() | {"row_labels": broken},
                factors.config(),
                (24, 32),
                factors.dtype,
            )


@pytest.mark.parametrize("seed", [0, 83])  # under the importance alone the last is worse
def test_groups_under_an_importance_are_no_worse_than_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((14, 12)).astype(np.float32)
    importance = rng.random(W.shape)
    method = BlockDiagonal(n_blocks=2)
    error = method.compress(W, importance=importance).error(W, importance=importance)
    assert error <= method.compress(W).error(W, importance=importance)
