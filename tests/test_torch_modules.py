"""Compressed recurrent layers, attention, bags and modules of other classes, against plain ones."""

from __future__ import annotations

import copy
import gc
import importlib.util
import io
import pickle
import weakref

import numpy as np
import pytest
from fastfactor.methods import Codebook, Dictionary, LowRank, Prune
from fastfactor.training import Schedule, State

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import apply_compression, load_compressed
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

METHODS = (
    LowRank(rank=3),
    Codebook(n_bits=3),
    Prune(sparsity=0.6),
    Dictionary(n_nonzero_coefs=2, block_size=4, n_atoms=12, max_iter=2),
)
BLEND = Schedule(begin=0, frequency=1, alpha_decrement=0.25)
STEPS = (0, 1, 4)  # blended with α = 1 and 0.75, then factors alone


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


class Bilinear(nn.Module):
    """A module of one's own, whose parameters are used in its own way."""

    def __init__(self):
        super().__init__()
        self.core = nn.Parameter(torch.randn(8, 6, 4))
        self.tables = nn.ParameterList([torch.randn(5, 8), torch.randn(7, 8)])
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x, ids):
        rows = self.tables[0][ids - 2] + self.tables[1][ids]
        return torch.einsum("abc,nb,nc->na", self.core, x, x[:, :4]) * self.scale + rows


def attention(**settings):
    return nn.MultiheadAttention(16, 4, dropout=0.0, **settings)


def cases():
    """A layer and its arguments by name."""
    x = torch.randn(5, 3, 8)  # time, batch, features
    h, c = torch.randn(2, 3, 12), torch.randn(2, 3, 12)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
    a, b = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    per_head = torch.randn(3 * 4, 5, 5)
    ids, offsets = torch.tensor([1, 4, 2, 2, 0, 9]), torch.tensor([0, 2, 2])
    bags = torch.randint(0, 10, (3, 4))
    weights = torch.randn(3, 4)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    found = {
        "lstm": (nn.LSTM(8, 12), (x,)),
        "lstm, two layers, both ways": (nn.LSTM(8, 12, 2, bidirectional=True), (x,)),
        "lstm, batch first, states": (
            nn.LSTM(8, 12, 2, batch_first=True),
            (x.transpose(0, 1), (h, c)),
        ),
        "lstm, projected": (nn.LSTM(8, 12, 2, proj_size=4, bidirectional=True), (x,)),
        "lstm without bias, one input": (
            nn.LSTM(8, 12, bias=False),
            (x[:, 0], (h[:1, 0], c[:1, 0])),
        ),
        "lstm, packed": (nn.LSTM(8, 12, 2), (packed,)),
        "lstm, wide batch": (nn.LSTM(8, 12), (torch.randn(2, 16, 8),)),
        "lstm, one step": (nn.LSTM(8, 12, 2, bidirectional=True), (x[:1],)),
        "lstm, projected, two steps": (nn.LSTM(8, 12, proj_size=4, batch_first=True), (x[:, :2],)),
        "gru, one step": (nn.GRU(8, 12), (x[:1], h[:1])),
        "rnn, two steps": (nn.RNN(8, 12, nonlinearity="relu", bias=False), (x[:2],)),
        "rnn, one step": (nn.RNN(8, 12), (x[0],)),
        "gru": (nn.GRU(8, 12, 2), (x, h)),
        "gru, both ways, one input": (
            nn.GRU(8, 12, bidirectional=True, batch_first=True),
            (x[:, 0],),
        ),
        "rnn": (nn.RNN(8, 12, 2, nonlinearity="relu"), (x,)),
        "rnn, packed": (nn.RNN(8, 12, bidirectional=True), (packed,)),
        "lstm cell": (nn.LSTMCell(8, 12), (x[0], (h[0], c[0]))),
        "lstm cell, one input": (nn.LSTMCell(8, 12, bias=False), (x[0, 0],)),
        "gru cell": (nn.GRUCell(8, 12), (x[0], h[0])),
        "rnn cell": (nn.RNNCell(8, 12, nonlinearity="relu"), (x[0],)),
        "attention": (attention(batch_first=True), (a, a, a)),
        "attention, causal": (
            attention(batch_first=True),
            (a, a, a, None, False, causal, True, True),
        ),
        "attention, padding": (attention(batch_first=True), (a, a, a, padding)),
        "attention, both masks": (
            attention(batch_first=True, add_zero_attn=True),
            (a, a, a, padding.float().mul(-9), True, per_head, False),
        ),
        "attention, mask of booleans": (
            attention(batch_first=True),
            (a, a, a, padding, False, causal == -torch.inf),
        ),
        "attention across": (
            attention(),
            (a.transpose(0, 1), b.transpose(0, 1), b.transpose(0, 1)),
        ),
        "attention, other widths": (
            attention(kdim=8, vdim=12, bias=False),
            (torch.randn(4, 2, 16), torch.randn(3, 2, 8), torch.randn(3, 2, 12)),
        ),
        "attention, added keys, one input": (
            attention(add_bias_kv=True, add_zero_attn=True),
            (a[0], a[0], a[0]),
        ),
        "encoder": (encoder, (a, None, padding)),
        "encoders": (nn.TransformerEncoder(encoder, 2), (a, causal)),
        "decoder": (
            nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True),
            (a, b, causal),
        ),
        "bag, mean": (nn.EmbeddingBag(10, 12, mode="mean"), (ids, offsets)),
        "bag, max": (nn.EmbeddingBag(10, 12, mode="max", padding_idx=2), (bags,)),
        "bag, weighted sum": (
            nn.EmbeddingBag(10, 12, mode="sum", padding_idx=2, include_last_offset=True),
            (ids, torch.tensor([0, 2, 2, 6]), weights.reshape(-1)[:6]),
        ),
        "of one's own": (Bilinear(), (torch.randn(4, 6), torch.tensor([0, 6, 3, 3]))),
    }
    return found


TARGETS = {"of one's own": ["core", "tables.*"]}
KINDS = tuple(cases())


def tensors(result):
    """All tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for each in result or () for tensor in tensors(each)]


def compressed(kind, method):
    layer, arguments = cases()[kind]
    plain = copy.deepcopy(layer)
    compression = apply_compression(layer, method, BLEND, targets=TARGETS.get(kind))
    return layer, plain, arguments, compression


def blended(compression, plain):
    """The weights that a plain model must have, by the factors as NumPy rebuilds them."""
    found = {}
    for shared, names in compression._weights.items():
        alpha, W = shared.matrix.alpha, plain.get_parameter(names[0]).detach()
        dense = torch.from_numpy(np.asarray(shared.trained_factors().to_dense())).reshape(W.shape)
        found |= dict.fromkeys(names, alpha * W + (1 - alpha) * dense)
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_a_plain_one_with_the_blended_weights(kind, method, training):
    layer, plain, arguments, compression = compressed(kind, method)
    layer.train(training)
    plain.train(training)
    assert isinstance(layer, type(plain))
    for given, wanted in zip(tensors(layer(*arguments)), tensors(plain(*arguments)), strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)
    for step in STEPS:
        compression.step(step)
        weights = blended(compression, plain)
        with torch.no_grad():
            expected = torch.func.functional_call(plain, weights, arguments)
            found = layer(*arguments)
        for given, wanted in zip(tensors(found), tensors(expected), strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-4)
    assert {row.stage for row in compression.report()} == {State.FACTORS}
    left = dict(layer.named_parameters())
    assert not set(weights) & set(left)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_weights_by_the_factors(kind):
    layer, plain, arguments, compression = compressed(kind, LowRank(rank=3))
    compression.step(1)
    seeds = [torch.randn_like(each) for each in tensors(layer(*arguments))]

    def backward(model):
        model.zero_grad()
        torch.autograd.backward(tensors(model(*arguments)), seeds)

    backward(layer)
    with torch.no_grad():
        for name, W in blended(compression, plain).items():
            plain.get_parameter(name).copy_(W)
    backward(plain)
    dense = dict(layer.named_parameters())
    for name in compression.names:
        by_weight = plain.get_parameter(name).grad
        torch.testing.assert_close(dense[name].grad, 0.75 * by_weight, rtol=1e-3, atol=1e-4)
        B, C = dense[f"{name}_B"], dense[f"{name}_C"]
        matrix = 0.25 * by_weight.reshape(B.shape[0], -1)
        torch.testing.assert_close(B.grad, matrix @ C.T, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(C.grad, B.T @ matrix, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_pickles_and_states_give_the_same(kind):
    layer, _, arguments, compression = compressed(kind, Codebook(n_bits=3))
    layer.eval()
    for step in STEPS:
        compression.step(step)
        expected = tensors(layer(*arguments))
        fresh, _, _, _ = compressed(kind, Codebook(n_bits=3))
        saved = io.BytesIO()
        torch.save(layer.state_dict(), saved)
        saved.seek(0)
        fresh.load_state_dict(torch.load(saved, weights_only=True))
        fresh.eval()
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
            for given, wanted in zip(tensors(other(*arguments)), expected, strict=True):
                torch.testing.assert_close(given, wanted, rtol=0, atol=0)
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.zero_()
        for given, wanted in zip(tensors(layer(*arguments)), expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_module_goes_to_a_file_and_back(kind, tmp_path):
    layer, plain, arguments, compression = compressed(kind, LowRank(rank=3))
    compression.step(4)
    compression.to_store(tmp_path / "small.safetensors")
    loaded = load_compressed(plain, tmp_path / "small.safetensors").eval()
    expected = tensors(layer.eval()(*arguments))
    for given, wanted in zip(tensors(loaded(*arguments)), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["lstm, two layers, both ways", "attention", "of one's own"])
def test_a_dense_state_makes_a_compressed_module_dense_again(kind):
    layer, plain, arguments, compression = compressed(kind, LowRank(rank=3))
    for step in (None, 1, 4):
        if step is not None:
            compression.step(step)
        layer.load_state_dict(plain.state_dict())
        assert {row.stage for row in compression.report()} == {State.DENSE}
        for given, wanted in zip(
            tensors(layer(*arguments)), tensors(plain(*arguments)), strict=True
        ):
            torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)


def test_names_stand_for_layers_and_for_single_weights():
    def chosen(model, *arguments, **keywords):
        return apply_compression(model, *arguments, **keywords).names

    def model():
        return nn.ModuleDict(
            {
                "rnn": nn.LSTM(8, 12),
                "attention": attention(),
                "norm": nn.LayerNorm(16),
                "own": Bilinear(),
            }
        )

    every = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "attention.in_proj_weight")
    every += ("attention.out_proj.weight",)
    rank = LowRank(rank=2)
    assert chosen(model(), rank) == every
    assert chosen(model(), rank, targets="*") == every
    assert chosen(model(), rank, targets="attention") == every[2:]
    assert chosen(model(), rank, ignore=["attention", "rnn.weight_hh*"]) == every[:1]
    assert chosen(model(), rank, targets="rnn.weight_hh_l0") == every[1:2]
    assert chosen(model(), rank, targets=["own.core"]) == ("own.core",)
    assert chosen(model(), {"own.tables.*": rank}) == ("own.tables.0", "own.tables.1")
    assert chosen(model(), {"*": rank, "own.core": Prune(sparsity=0.5)}) == (*every, "own.core")
    for name, why in (
        ("norm", "got LayerNorm"),
        ("own", "got Bilinear"),
        ("own.scale", "two axes"),
    ):
        with pytest.raises(TypeError, match=f"layer '{name}' must .*{why}"):
            chosen(model(), rank, targets=name)


def test_encoders_do_not_hand_their_weights_to_the_fused_function():
    x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    plain = copy.deepcopy(model).eval()
    compression = apply_compression(model, LowRank(rank=3), BLEND, targets="layers.1.linear1")
    model.eval()
    with torch.no_grad():
        for step in STEPS:
            compression.step(step)
            found = model(x, src_key_padding_mask=padding)
            expected = torch.func.functional_call(
                plain, blended(compression, plain), (x,), {"src_key_padding_mask": padding}
            )
            torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-3, atol=1e-4)


def test_only_the_last_projection_of_an_attention():
    layer, x = attention(batch_first=True).eval(), torch.randn(2, 5, 16)
    model = nn.ModuleList([layer])
    apply_compression(model, LowRank(rank=16), targets="0.out_proj").step()
    plain = attention(batch_first=True).eval()
    plain.load_state_dict(
        {**layer.state_dict(), "out_proj.weight": layer.out_proj.full("weight")}, strict=False
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x, x, x), plain(x, x, x), rtol=1e-4, atol=1e-5)


def test_the_dense_weights_of_a_recurrent_layer_are_freed():
    layer = nn.LSTM(8, 12)
    held = [weakref.ref(p) for name, p in layer.named_parameters() if name.startswith("weight")]
    compression = apply_compression(layer, LowRank(rank=2))
    layer(torch.randn(3, 2, 8))
    compression.step()
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_a_layer_with_two_names_is_compressed_once(tmp_path):
    def model():
        made = nn.ModuleDict({"a": nn.Linear(8, 6), "c": nn.Linear(6, 8)})
        made["b"] = made["a"]
        return made

    first, x = model(), torch.randn(2, 8)
    compression = apply_compression(first, LowRank(rank=2))
    assert compression.names == ("a.weight", "c.weight")
    compression.step()
    compression.to_store(tmp_path / "small.safetensors")
    loaded = load_compressed(model(), tmp_path / "small.safetensors")
    assert loaded["a"] is loaded["b"]
    torch.testing.assert_close(loaded["b"](x), first["a"](x), rtol=0, atol=0)
