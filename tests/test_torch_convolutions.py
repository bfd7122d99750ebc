"""Layers of PyTorch that run as chains of convolutions, against convolutions with W rebuilt."""

from __future__ import annotations

import copy
import importlib.util
import io

import numpy as np
import pytest
from fastfactor.methods import (
    ConvBicluster,
    ConvCP,
    ConvMonochromatic,
    ConvSeparable,
    ConvSVD,
    LowRank,
)
from fastfactor.training import Schedule

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import (
    ChannelOrder,
    apply_compression,
    load_compressed,
    native_chains,
    to_convolutions,
)
from torch import nn
from torch.nn import functional

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]

METHODS = (
    ConvSVD(ranks=(3, 4)),
    ConvSeparable(rank=3),
    ConvCP(rank=4),
    ConvMonochromatic(n_colors=4),
    ConvBicluster(ranks=(2, 2)),
    ConvBicluster(ranks=2, inside="cp", n_clusters=(2, 4)),
)
methods = pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: type(m).__name__ + getattr(m, "inside", "")
)
FORMS = (
    {"kernel_size": (3, 4), "stride": 2, "padding": 1},
    {"kernel_size": (3, 4), "padding": "same", "dilation": 2, "groups": 2},
    {"kernel_size": (2, 4), "padding": "same"},  # more zeros behind than before
    {"kernel_size": (3, 3), "padding": (2, 1), "dilation": (1, 2), "padding_mode": "circular"},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "reflect", "stride": 1},
    {"kernel_size": (5, 1), "stride": (3, 2), "groups": 2, "bias": False},
    {"kernel_size": 1, "stride": 2},
)
forms = pytest.mark.parametrize("form", FORMS, ids=str)


def convolution(form, dtype=torch.float64):
    torch.manual_seed(0)
    groups = form.get("groups", 1)
    return nn.Conv2d(4 * groups, 8 * groups, dtype=dtype, **form)


def images(conv, size=(11, 14)):
    rng = np.random.default_rng(1)
    dtype = next(conv.parameters()).dtype
    return torch.from_numpy(rng.standard_normal((2, conv.in_channels, *size))).to(dtype)


def expected(conv, x, weight):
    """What the layer must give with this weight, by PyTorch's own convolution."""
    plain = copy.deepcopy(conv)
    plain.__class__ = nn.Conv2d
    return plain._conv_forward(x, weight, conv.bias)


@methods
@forms
def test_each_stage_is_the_convolution_with_its_weight(method, form):
    conv = convolution(form)
    x = images(conv).requires_grad_()
    compression = apply_compression(
        conv, method, Schedule(begin=1, end=-1, frequency=1, alpha_decrement=0.5)
    )
    optimizer = torch.optim.SGD(conv.parameters(), lr=1e-2)
    for _ in range(5):
        y, by_weight = conv(x), expected(conv, x, conv.full("weight"))
        torch.testing.assert_close(y, by_weight, rtol=0, atol=1e-9)
        wanted = [p for p in conv.parameters() if p.requires_grad]
        found = torch.autograd.grad(y.square().sum(), [x, *wanted], retain_graph=True)
        rebuilt = torch.autograd.grad(by_weight.square().sum(), [x, *wanted])
        for mine, theirs in zip(found, rebuilt, strict=True):
            scale = float(theirs.abs().max()) + 1e-30
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9 * scale)
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        compression.step()
    assert compression.report()[0].stage.value == "factors"
    conv.eval()
    torch.testing.assert_close(conv(x), conv.train()(x), rtol=0, atol=1e-9)


@methods
@forms
def test_finished_layers_run_the_kernel_where_nothing_looks_on(method, form, monkeypatch):
    conv = convolution(form, torch.float32)
    x = images(conv)
    apply_compression(conv, method).step()
    calls = []
    kernel = native_chains.conv_chain

    def counted(*arguments, **options):
        calls.append(options["n_threads"])
        return kernel(*arguments, **options)

    monkeypatch.setattr(native_chains, "conv_chain", counted)
    y = conv(x)
    conv.eval()
    conv(x)  # with gradients
    assert calls == []
    with torch.no_grad():
        torch.testing.assert_close(conv(x), y, rtol=0, atol=2e-5 * float(y.abs().max()))
        assert calls == [torch.get_num_threads()]
        for parameter in conv.parameters():
            parameter.data.mul_(1.5)  # which no version of a tensor tells
        again = conv(x)
        conv.train()
        torch.testing.assert_close(again, conv(x), rtol=0, atol=2e-5 * float(again.abs().max()))
        assert len(calls) == 2
        conv.eval()
        for other in (x[0], x.double().float().to(memory_format=torch.channels_last), x[:0]):
            conv(other)
        with torch.autocast("cpu", torch.bfloat16):
            conv(x)
        copy.deepcopy(conv).double()(x.double())
        assert len(calls) == 2
        torch.testing.assert_close(copy.deepcopy(conv)(x), again)
        assert len(calls) == 3


@methods
@forms
def test_plain_layers_give_the_same(method, form):
    conv = convolution(form)
    x = images(conv)
    compression = apply_compression(conv, method)
    compression.step()
    factors = conv.compressed["weight"].trained_factors()
    own = {name: value for name, value in form.items() if name in SETTINGS}
    bias = None if conv.bias is None else conv.bias + torch.arange(len(conv.bias))
    plain = to_convolutions(factors, bias=bias, **own)
    dense = torch.from_numpy(factors.to_dense()).reshape(conv.compressed["weight"].shape)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    torch.testing.assert_close(plain(x), expected(conv, x, dense), rtol=0, atol=1e-9)
    kinds = {type(module) for module in plain}
    pads = {nn.ZeroPad2d, nn.ReflectionPad2d}
    assert kinds <= {nn.Conv2d, ChannelOrder} | pads
    again = to_convolutions(factors, bias=bias, **own)
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(copy.deepcopy(again)(x), plain(x), rtol=0, atol=0)
    program = torch.export.export(plain, (x,))
    torch.testing.assert_close(program.module()(x), plain(x), rtol=0, atol=1e-12)


SETTINGS = ("stride", "padding", "dilation", "padding_mode")


@methods
def test_finished_layers_can_be_compiled_exported_and_copied(method):
    conv = convolution(FORMS[0], torch.float32)
    x = images(conv)
    compression = apply_compression(conv, method)
    compression.step()
    conv.eval()
    y = conv(x)
    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), y)
    torch.testing.assert_close(torch.export.export(conv, (x,)).module()(x), y)
    torch.testing.assert_close(copy.deepcopy(conv)(x), y)
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), y)


@methods
def test_states_are_resumed_in_the_middle_of_a_blend(method):
    schedule = Schedule(begin=1, end=-1, frequency=1, alpha_decrement=0.25)
    models = [nn.Sequential(convolution(FORMS[1])) for _ in range(2)]
    compressions = [apply_compression(model, method, schedule) for model in models]
    x = images(models[0][0])
    for _ in range(3):
        compressions[0].step()
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.mul_(1.25)
    models[1].load_state_dict(models[0].state_dict())
    torch.testing.assert_close(models[1](x), models[0](x), rtol=0, atol=0)
    for _ in range(3):
        for compression in compressions:
            compression.step()
    torch.testing.assert_close(models[1](x), models[0](x), rtol=0, atol=0)
    models[0].load_state_dict(nn.Sequential(convolution(FORMS[1])).state_dict())
    torch.testing.assert_close(models[0](x), nn.Sequential(convolution(FORMS[1]))(x))


@methods
def test_files_hold_the_trained_chain(method, tmp_path):
    model = nn.Sequential(convolution(FORMS[1], torch.float32), nn.ReLU())
    compression = apply_compression(model, method)
    compression.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    path = tmp_path / "small.safetensors"
    compression.to_store(path)
    loaded = load_compressed(nn.Sequential(convolution(FORMS[1], torch.float32), nn.ReLU()), path)
    x = images(model[0])
    torch.testing.assert_close(loaded(x), model(x))
    # Of a layer in other groups the chain is not that of the factors: W is rebuilt.
    other = nn.Conv2d(4, 16, (3, 4), padding="same", dilation=2)
    assert other.weight.shape == model[0].compressed["weight"].shape
    whole = load_compressed(nn.Sequential(other, nn.ReLU()), path)
    x = torch.randn(1, 4, 9, 9)
    dense = whole[0].full("weight")
    torch.testing.assert_close(whole(x), expected(whole[0], x, dense).relu())


@methods
def test_convolutions_over_one_axis(method):
    torch.manual_seed(0)
    conv = nn.Conv1d(8, 16, 5, stride=2, padding=2, groups=2, dtype=torch.float64)
    x = torch.randn(3, 8, 17, dtype=torch.float64)
    compression = apply_compression(conv, method)
    compression.step()
    expected = functional.conv1d(x, conv.full("weight"), conv.bias, 2, 2, 1, 2)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(conv(x[0]), expected[0], rtol=0, atol=1e-9)


def test_such_methods_mean_the_convolutions_of_a_model():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.Conv3d(4, 8, 3))
    compression = apply_compression(model, ConvSVD(ranks=(2, 2)))
    assert compression.names == ("0.weight",)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 8))
    for targets in ("1", ["0", "1"]):
        with pytest.raises(TypeError, match="layer '1' must be a convolution over one axis or two"):
            apply_compression(model, ConvSVD(ranks=(2, 2)), targets=targets)
    both = {"*": ConvSVD(ranks=(2, 2)), "1": LowRank(rank=2)}
    assert apply_compression(model, both).names == ("0.weight", "1.weight")


def test_what_does_not_fit_is_refused_by_name_before_anything_changes():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 9, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"0.weight: groups must be those of the layer, 2, got 4"):
        apply_compression(model, {"0": ConvSVD(ranks=(1, 1), groups=4)})
    with pytest.raises(ValueError, match=r"0.weight: kernel_size must be that of W, \(3, 3\)"):
        apply_compression(model, {"0": ConvSVD(ranks=(1, 1), kernel_size=(5, 5))})
    with pytest.raises(ValueError, match=r"1.weight: n_colors must divide the 9 filters"):
        apply_compression(model, {"1": ConvMonochromatic(n_colors=2)})
    assert type(model[1]) is nn.Conv2d
    assert before.keys() == model.state_dict().keys()


def test_orders_of_channels_are_checked():
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ChannelOrder(np.array([2, 0, 1]))(x), x[:, [2, 0, 1]])
    for wrong in ([0, 0, 1], [1, 2, 3], [[0, 1]]):
        with pytest.raises(ValueError, match="channels must be a permutation, got"):
            ChannelOrder(wrong)


def test_what_is_no_convolution_has_no_plain_layers():
    W = np.ones((8, 4), np.float32)
    with pytest.raises(TypeError, match="factors must be those of a convolution, got LowRank"):
        to_convolutions(LowRank(rank=1).compress(W))
    factors = ConvSVD(ranks=(1, 1)).compress(np.ones((8, 4, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\), got \(4,\)"):
        to_convolutions(factors, bias=np.ones(4))
