"""Faults of the first compression operator (google-research/graph_compression), one test each.

Those of its layers are at the end; they need PyTorch.
"""

from __future__ import annotations

import importlib.util
import weakref

import numpy as np
import pytest
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
from fastfactor.training import CompressedMatrix, Schedule

HAS_TORCH = importlib.util.find_spec("torch") is not None

METHODS = (
    LowRank(rank=3),
    Simhash(n_hashes=40),
    Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2),
    Codebook(n_bits=3),
    Codebook(n_bits=2, vector_dim=4),
    Prune(sparsity=0.5),
    PruneCodebook(n_bits=3, sparsity=0.5),
    DeepCompression(n_bits=3, sparsity=0.5),
    EntropyCoded(bits_per_weight=3),
    BlockDiagonal(n_blocks=4),
    MixedBlock(rank=3),
    BlockProjection(reduction=2, block_in=8, block_out=8),
)


def weights(rows=24, columns=32):
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def needs_torch(test):
    skip = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
    return pytest.mark.framework(skip(test))


def test_1_updates_keep_to_the_frequency_however_often_they_are_asked_for():
    matrix = CompressedMatrix(
        LowRank(rank=1), Schedule(begin=10, frequency=5, alpha_decrement=0.25)
    )
    changes = []
    for step in range(40):
        for _ in range(3):
            if matrix.advance(step, weights).alpha_changed:
                changes.append(step)
    assert changes == [15, 20, 25, 30]


def test_2_an_end_of_minus_one_means_for_ever():
    schedule = Schedule(begin=5, end=-1, frequency=1000, alpha_decrement=0.001)
    assert schedule.alpha(4) == schedule.alpha(5 + 999) == 1
    assert schedule.alpha(5 + 500_000) == pytest.approx(0.5)
    assert schedule.alpha(10**9) == 0


@pytest.mark.parametrize("unknown", ["low_rank", 1, None, LowRank, {"rank": 3}])
def test_4_what_is_no_compressor_is_refused(unknown):
    with pytest.raises(TypeError, match="compressor must be"):
        CompressedMatrix(unknown)


def test_5_a_matrix_is_factored_once_as_it_is_at_that_step():
    W, reads = np.zeros((24, 32), np.float32), []

    def read():
        reads.append(W.copy())
        return W

    matrix = CompressedMatrix(LowRank(rank=3), Schedule(begin=3, frequency=1, alpha_decrement=0.5))
    for step in range(8):
        W += weights() * (step + 1)
        matrix.advance(step, read)
    assert len(reads) == 1
    expected = LowRank(rank=3).compress(reads[0]).to_dense()
    np.testing.assert_array_equal(matrix.factors.to_dense(), expected)
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_8_all_ways_to_multiply_give_one_matrix(method):
    factors, eye = method.compress(weights()), np.eye(32)
    dense = np.asarray(factors.to_dense(), np.float64)
    scale = np.abs(dense).max()
    ways = {
        "linear": factors.linear(eye.astype(np.float32)).T,
        "linear of one": np.stack([factors.linear(row) for row in eye.astype(np.float32)], 1),
        "rows": factors.rows(np.arange(24)),
        "stored": type(factors)
        .from_tensors(factors.tensors(), factors.config(), factors.shape, factors.dtype)
        .to_dense(),
    }
    for name, W in ways.items():
        np.testing.assert_allclose(W, dense, rtol=0, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_9_a_look_up_has_as_many_values_as_its_bits_say(n_bits):
    factors = Codebook(n_bits=n_bits).compress(weights(48, 64))
    assert len(np.unique(factors.to_dense())) == 2**n_bits
    np.testing.assert_array_equal(factors.rows([5, 5, 0]), factors.to_dense()[[5, 5, 0]])


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4])
def test_9_blocks_are_counted_before_they_are_used(n_blocks):
    W = weights(24, 36)
    factors = BlockDiagonal(n_blocks=n_blocks).compress(W)
    assert np.count_nonzero(factors.to_dense()) == W.size / n_blocks


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_10_no_method_changes_its_argument(method):
    W = weights() + 3  # of a mean that a method might shift
    before = W.copy()
    method.compress(W)
    np.testing.assert_array_equal(W, before)
    W.setflags(write=False)
    method.compress(W)


@needs_torch
@pytest.mark.parametrize("method", [LowRank(rank=2), Simhash(n_hashes=16)], ids=repr)
def test_3_a_dense_matrix_is_freed_and_no_other_stays(method):
    import torch
    from fastfactor.torch import apply_compression

    layer = torch.nn.Linear(64, 48, bias=False)
    held = weakref.ref(layer.weight)
    compression = apply_compression(layer, method)
    compression.step()
    layer(torch.ones(1, 64))
    assert held() is None
    stored = layer.state_dict()["_extra_state"]["weight"]["factors"]["tensors"]
    kept = [*layer.parameters(), *layer.buffers(), *stored.values()]
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) < 48 * 64 * 4 / 2


@needs_torch
def test_6_a_convolution_adds_its_bias_after_both_products():
    import torch
    from fastfactor.torch import apply_compression

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 16, 3), torch.nn.ReLU())
    x, filters = torch.randn(2, 6, 8, 8), model[0].weight.detach().reshape(16, -1)
    compression = apply_compression(model, LowRank(rank=4))
    compression.step()
    left, s, right = torch.linalg.svd(filters.double())
    near = (left[:, :4] * s[:4]) @ right[:4]
    expected = torch.relu(
        torch.nn.functional.conv2d(x, near.float().reshape(16, 6, 3, 3), model[0].bias)
    )
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@needs_torch
def test_7_every_layer_of_every_kind_can_be_called_after_the_swap():
    import torch
    from fastfactor.torch import apply_compression
    from fastfactor.torch.kinds import CLASSES
    from torch import nn

    ids, x = torch.tensor([[1, 2]]), torch.randn(2, 16)
    calls = {
        nn.Linear: (nn.Linear(16, 16), (x,)),
        nn.Embedding: (nn.Embedding(16, 16), (ids,)),
        nn.EmbeddingBag: (nn.EmbeddingBag(16, 16), (ids,)),
        nn.Conv1d: (nn.Conv1d(16, 16, 2), (torch.randn(1, 16, 4),)),
        nn.Conv2d: (nn.Conv2d(16, 16, 2), (torch.randn(1, 16, 4, 4),)),
        nn.Conv3d: (nn.Conv3d(16, 16, 2), (torch.randn(1, 16, 4, 4, 4),)),
        **{kind: (kind(16, 16), (x,)) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
        **{kind: (kind(16, 16), (x,)) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)},
        nn.MultiheadAttention: (nn.MultiheadAttention(16, 2), (x, x, x)),
    }
    within = {nn.modules.linear.NonDynamicallyQuantizableLinear}  # the end of an attention
    assert calls.keys() == CLASSES.keys() - within
    for layer, arguments in calls.values():
        compression = apply_compression(layer, Codebook(n_bits=2), Schedule(0, -1, 1, 0.5))
        for _ in range(4):
            for is_training in (True, False):
                layer.train(is_training)(*arguments)
            compression.step()
        assert {row["stage"] for row in compression.state().values()} == {"factors"}
