"""Layers of PyTorch with a compressed weight: products and gradients at every stage."""

from __future__ import annotations

import copy
import importlib.util
import pickle

import numpy as np
import pytest
from fastfactor.methods import (
    BlockDiagonal,
    BlockProjection,
    Codebook,
    Dictionary,
    EntropyCoded,
    LowRank,
    MixedBlock,
    Prune,
    PruneCodebook,
    Simhash,
)
from fastfactor.training import Schedule, State

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import apply_compression
from torch import nn

pytestmark = pytest.mark.framework

METHODS = (
    LowRank(rank=4),
    Codebook(n_bits=3),
    Codebook(n_bits=3, vector_dim=4),
    Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2),
    EntropyCoded(bits_per_weight=4),
    Prune(sparsity=0.6),
    PruneCodebook(n_bits=3, sparsity=0.5),
    Simhash(n_hashes=32),
    BlockDiagonal(n_blocks=4),
    MixedBlock(rank=4),
    BlockProjection(reduction=2, block_in=8, block_out=8),
)
BLEND = Schedule(begin=0, frequency=1, alpha_decrement=0.25)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def layers():
    return {
        "linear": (nn.Linear(32, 24), torch.randn(5, 2, 32)),
        "linear without bias": (nn.Linear(32, 24, bias=False), torch.randn(32)),
        "embedding": (nn.Embedding(24, 32), torch.randint(0, 24, (3, 4))),
        "embedding with padding": (
            nn.Embedding(24, 32, padding_idx=2),
            torch.tensor([[2, 3], [4, 2]]),
        ),
        "conv1d": (nn.Conv1d(8, 24, 4, stride=2, padding=1), torch.randn(2, 8, 9)),
        "conv2d": (nn.Conv2d(8, 24, 2, padding=1, padding_mode="reflect"), torch.randn(2, 8, 5, 6)),
        "conv2d in groups": (nn.Conv2d(64, 24, 2, groups=8, dilation=2), torch.randn(1, 64, 5, 5)),
    }


KINDS = tuple(layers())


def dense_call(layer, weight, x):
    """What a plain layer with this weight gives."""
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(weight)
    return torch.func.functional_call(plain, {"weight": weight}, (x,))


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_the_blend_at_every_stage(kind, method):
    layer, x = layers()[kind]
    plain, W = copy.deepcopy(layer), layer.weight.detach().clone()
    compression = apply_compression(layer, method, BLEND)
    assert isinstance(layer, type(plain))
    torch.testing.assert_close(layer(x), plain(x))
    for step, alpha in enumerate((1.0, 0.75, 0.5, 0.25, 0.0, 0.0)):
        compression.step()
        (shared,) = compression._weights
        factors = shared.matrix.factors
        dense = torch.from_numpy(np.asarray(factors.to_dense())).reshape(W.shape)
        expected = dense_call(plain, alpha * W + (1 - alpha) * dense, x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        assert layer.stage_of("weight") is (State.BLENDED if step < 4 else State.FACTORS)
        assert float(layer.alpha_of("weight")) == alpha
    assert layer.weight is None


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_weight_by_alpha_and_the_factors_by_the_rest(kind, method):
    layer, x = layers()[kind]
    plain = copy.deepcopy(layer)
    if x.is_floating_point():
        x.requires_grad_()
    compression = apply_compression(layer, method, BLEND)
    compression.step(1)
    (shared,) = compression._weights
    y = layer(x)
    seed = torch.randn_like(y)
    y.backward(seed)
    # The gradient of a plain layer by its weight, which does not depend on the weight.
    reference = plain.weight.detach().clone().requires_grad_()
    dense_call(plain, reference, x.detach()).backward(seed)
    by_weight = reference.grad
    torch.testing.assert_close(layer.weight.grad, 0.75 * by_weight, rtol=1e-4, atol=1e-4)
    trained = {
        name: parameter.detach().double().requires_grad_()
        for name, parameter in layer.factors_of("weight").items()
    }
    twice = copy.deepcopy(shared.matrix.factors)
    eye = torch.eye(twice.shape[1], dtype=torch.float64)
    W = twice.forward(shared.xp, trained, eye).T.reshape(by_weight.shape)
    W.backward(0.25 * by_weight.double())
    for name, parameter in layer.factors_of("weight").items():
        torch.testing.assert_close(
            parameter.grad.double(), trained[name].grad, rtol=1e-3, atol=1e-4, msg=name
        )
    if x.requires_grad:
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_are_the_same_and_apart(kind):
    layer, x = layers()[kind]
    compression = apply_compression(layer, LowRank(rank=3), BLEND)
    for step in (0, 1, 4):
        compression.step(step)
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.zero_()
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_factors_follow_the_model_to_a_dtype_and_keep_wide_numbers():
    layer, x = nn.Linear(32, 24), torch.randn(4, 32)
    compression = apply_compression(
        layer, Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2)
    )
    compression.step()
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    layer.double()
    assert layer(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.float()
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_a_float64_layer_loses_no_digits():
    layer = nn.Linear(32, 24, dtype=torch.float64)
    compression = apply_compression(layer, LowRank(rank=24), BLEND)
    compression.step(1)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert compression.report()[0].relative_error < 1e-25
    W = layer.compressed["weight"].dense(layer.factors_of("weight"))
    torch.testing.assert_close(W, layer.weight, rtol=0, atol=1e-13)


def test_a_bfloat16_layer_is_factored_in_bfloat16():
    layer, x = nn.Linear(32, 24, dtype=torch.bfloat16), torch.randn(4, 32, dtype=torch.bfloat16)
    compression = apply_compression(layer, LowRank(rank=4), BLEND)
    compression.step(1)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer(x).dtype == torch.bfloat16
    assert compression.report()[0].relative_error < 1


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_finished_layers_are_exported(method):
    """And what an export makes of arrays, tensors without numbers, is not remembered."""
    model, x = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32)), torch.randn(4, 32)
    compression = apply_compression(model, method)
    compression.step()
    program = torch.export.export(model, (x,))
    expected = model(x)
    torch.testing.assert_close(program.module()(x), expected)
    dense = [
        torch.from_numpy(np.asarray(shared.matrix.factors.to_dense(), np.float32))
        for shared in compression._weights
    ]
    hidden = torch.relu(nn.functional.linear(x, dense[0], model[0].bias))
    plain = nn.functional.linear(hidden, dense[1], model[2].bias)
    torch.testing.assert_close(expected, plain, rtol=1e-3, atol=1e-3)


def test_a_compiled_model_is_compiled_once_for_every_alpha():
    model, x = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32)), torch.randn(4, 32)
    compression = apply_compression(model, LowRank(rank=4), BLEND)
    compression.step()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compression.step()
            torch.testing.assert_close(compiled(x), model(x))
    compression.step()  # the weights go: another program
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's, of itself
@pytest.mark.parametrize("method", [Codebook(n_bits=3), Prune(sparsity=0.6)], ids=repr)
def test_methods_with_fixed_codes_work_in_compiled_models(method):
    model, x = nn.Linear(32, 24), torch.randn(4, 32)
    compression = apply_compression(model, method, BLEND)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for step in (0, 1, 4):
        compression.step(step)
        torch.testing.assert_close(compiled(x), model(x))
