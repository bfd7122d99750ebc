"""Training with compressed layers: optimizers, stops and resumes, ties, files, what is refused."""

from __future__ import annotations

import copy
import gc
import importlib.util
import io
import weakref

import numpy as np
import pytest
from fastfactor import compress_file, store
from fastfactor.methods import Codebook, Dictionary, LowRank, Prune, PruneCodebook
from fastfactor.training import Schedule, State

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import apply_compression, load_compressed
from torch import nn

pytestmark = pytest.mark.framework

SCHEDULE = Schedule(begin=3, frequency=2, alpha_decrement=0.5)  # factored at 3, done at 7


class Net(nn.Module):
    """A small language model whose table of words is also its last layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.first = nn.Linear(24, 40)
        self.norm = nn.BatchNorm1d(40)
        self.second = nn.Linear(40, 24)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.norm(torch.relu(self.first(self.words(ids))))
        return self.head(self.second(x))


def net():
    torch.manual_seed(0)
    return Net()


def batch(step):
    return torch.randint(0, 50, (32,), generator=torch.Generator().manual_seed(step))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
}


def train(model, optimizer, compression, steps, losses=None):
    for step in steps:
        loss = nn.functional.cross_entropy(model(batch(step)), batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compression.step()
        if losses is not None:
            losses.append(loss.item())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(
    "method", [LowRank(rank=6), Codebook(n_bits=4), Prune(sparsity=0.5)], ids=repr
)
def test_an_optimizer_trains_the_factors_and_forgets_the_weights(make, method):
    model, losses = net(), []
    compression = apply_compression(model, method, SCHEDULE)
    optimizer = make(model.parameters())
    train(model, optimizer, compression, range(12), losses)
    params = optimizer.param_groups[0]["params"]
    assert [id(p) for p in params] == [id(p) for p in model.parameters()]
    assert set(optimizer.state) <= set(params)
    before = copy.deepcopy([p.detach() for p in params])
    train(model, optimizer, compression, range(12, 30), losses)
    assert all(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert losses[-1] < losses[8]
    assert {row.stage for row in compression.report()} == {State.FACTORS}


def test_lbfgs_begins_anew_when_its_parameters_change():
    model = nn.Linear(24, 40)
    compression = apply_compression(model, LowRank(rank=4), SCHEDULE)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    x, y = torch.randn(64, 24), torch.randn(64, 40)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(12):
        optimizer.step(closure)
        compression.step()
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
    assert len(optimizer.state) == 1
    assert losses[-1] < losses[0]


def test_each_group_keeps_its_settings_and_gets_the_factors_of_its_weights():
    model = net()
    compression = apply_compression(model, LowRank(rank=4), SCHEDULE)
    slow = [model.first.weight]
    fast = [p for p in model.parameters() if p is not model.first.weight]
    optimizer = torch.optim.SGD([{"params": slow, "lr": 0.0}, {"params": fast}], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for step in range(10):
        train(model, optimizer, compression, [step])
        schedule.step()
        if step == 3:
            start = model.first.weight_B.detach().clone()
    own = model.first.factors_of("weight").values()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in own]
    assert torch.equal(model.first.weight_B, start)  # a learning rate of zero
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 / 32)


def test_an_optimizer_that_comes_late_is_mended_when_it_steps():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compression = apply_compression(model, LowRank(rank=4))  # at once, before any step
    compression.step()
    assert model.first.weight is None
    assert len(optimizer.param_groups[0]["params"]) == 7
    train(model, optimizer, compression, range(2))
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in model.parameters()}
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    compression.track(other)
    assert len(other.param_groups[0]["params"]) == 7


def test_the_dense_weight_its_gradient_and_its_state_are_freed():
    model = net()
    compression = apply_compression(model, LowRank(rank=4), SCHEDULE)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, compression, range(3))
    weight = model.second.weight
    held = [weakref.ref(weight), weakref.ref(optimizer.state[weight]["exp_avg"])]
    del weight
    train(model, optimizer, compression, range(3, 8))
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_pruned_weights_stay_zero_under_momentum_and_decay():
    model = net()
    compression = apply_compression(model, Prune(sparsity=0.7), SCHEDULE)
    train(model, OPTIMIZERS["sgd"](model.parameters()), compression, range(20))
    shared = model.first.compressed["weight"]
    W = shared.trained_factors().to_dense()
    assert (W == 0).sum() == round(0.7 * W.size)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(
    "method", [LowRank(rank=4), PruneCodebook(n_bits=3, sparsity=0.5)], ids=repr
)
@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_resumed_training_gives_the_same_numbers(make, method, stop):
    straight = net()
    compression = apply_compression(straight, method, SCHEDULE)
    optimizer = make(straight.parameters())
    train(straight, optimizer, compression, range(stop))
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(straight, optimizer, compression, range(stop, 14))

    torch.manual_seed(1)
    resumed = Net()
    again = apply_compression(resumed, method, SCHEDULE)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["model"])
    other = make(resumed.parameters())
    other.load_state_dict(saved["optimizer"])
    assert again.state()["first.weight"]["last_step"] == stop - 1
    train(resumed, other, again, range(stop, 14))
    for (name, a), (other_name, b) in zip(
        straight.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert name == other_name
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_tied_weights_are_factored_once_and_stay_tied():
    model = net()
    compression = apply_compression(model, LowRank(rank=4), SCHEDULE)
    train(model, OPTIMIZERS["adam"](model.parameters()), compression, range(10))
    assert model.words.weight_B is model.head.weight_B
    rows = {row.name: row.tied for row in compression.report()}
    assert rows == {"words.weight": ("head.weight",), "first.weight": (), "second.weight": ()}
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert model.words.weight_B is model.head.weight_B


@pytest.mark.parametrize(
    "method",
    [
        LowRank(rank=4),
        Codebook(n_bits=4),
        Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2),
        Prune(sparsity=0.5),
    ],
    ids=repr,
)
def test_a_finished_model_goes_to_a_file_and_back(tmp_path, method):
    model, path = net(), tmp_path / "small.safetensors"
    compression = apply_compression(model, method, SCHEDULE)
    train(model, OPTIMIZERS["sgd"](model.parameters()), compression, range(10))
    model.eval()
    compression.to_store(path)
    with store.open_store(path) as opened:
        assert opened.info("head.weight").same_as == "words.weight"
        dense = {name: opened.to_dense(name) for name in opened}
    loaded = load_compressed(net(), path).eval()
    tied = loaded.words.factors_of("weight"), loaded.head.factors_of("weight")
    assert all(tied[0][name] is tied[1][name] for name in tied[0])
    torch.testing.assert_close(loaded(batch(0)), model(batch(0)), rtol=1e-2, atol=1e-2)
    plain = net().eval()
    plain.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in dense.items()})
    torch.testing.assert_close(loaded(batch(0)), plain(batch(0)), rtol=1e-3, atol=1e-3)


def test_a_file_has_what_other_calls_have_compressed(tmp_path):
    model = net().eval()
    first = apply_compression(model, Codebook(n_bits=3), SCHEDULE, targets="first")
    second = apply_compression(model, LowRank(rank=4), targets="second")
    second.step()
    for step, alpha in ((0, "1"), (5, "0.5")):  # dense, and in the middle of its blend
        first.step(step)
        with pytest.raises(ValueError, match=f"'first.weight' must be dropped .* α = {alpha};"):
            second.to_store(tmp_path / "small.safetensors")
        assert not list(tmp_path.iterdir())
    first.step(7)
    second.to_store(tmp_path / "small.safetensors")
    loaded = load_compressed(net(), tmp_path / "small.safetensors").eval()
    torch.testing.assert_close(loaded(batch(0)), model(batch(0)), rtol=1e-5, atol=1e-5)


def test_a_file_from_compress_file_is_loaded(tmp_path):
    model = net().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    recipe = {"default": {"method": "low_rank", "rank": 6}, "min_size": 1}
    compress_file(tmp_path / "model.pt", tmp_path / "small.safetensors", recipe)
    loaded = load_compressed(net(), tmp_path / "small.safetensors").eval()
    assert loaded.first.weight is None
    assert loaded.first.stage_of("weight") is State.FACTORS
    with store.open_store(tmp_path / "small.safetensors") as opened:
        first = torch.from_numpy(opened.to_dense("first.weight"))
    x = torch.randn(3, 24)
    torch.testing.assert_close(
        loaded.first(x), nn.functional.linear(x, first, model.first.bias), rtol=1e-4, atol=1e-4
    )


def test_loading_what_does_not_fit_changes_nothing(tmp_path):
    model = net()
    compression = apply_compression(model, LowRank(rank=4))
    compression.step()
    compression.to_store(tmp_path / "a.safetensors")
    other = nn.Sequential(nn.Linear(24, 40))
    with pytest.raises(ValueError, match=r"names in the file must be those of the model"):
        load_compressed(other, tmp_path / "a.safetensors")
    wide = Net()
    wide.first = nn.Linear(24, 41)
    wide.norm = nn.BatchNorm1d(40)
    with pytest.raises(ValueError, match=r"'first.weight' must have the model's shape \(41, 24\)"):
        load_compressed(wide, tmp_path / "a.safetensors")
    assert type(wide.second) is nn.Linear


# --- which layers, and what is refused


def test_patterns_choose_layers_and_compressors():
    model = net()
    compression = apply_compression(
        model, {"*": LowRank(rank=2), "second": Prune(sparsity=0.5)}, ignore=["words", "head"]
    )
    assert compression.names == ("first.weight", "second.weight")
    assert type(model.words) is nn.Embedding
    compression.step()
    assert model.second.compressed["weight"].matrix.factors.kind == "prune"
    assert model.first.weight_B.shape == (40, 2)
    only = net()
    assert apply_compression(only, LowRank(rank=2), targets="fi*").names == ("first.weight",)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"compressor": "low_rank"}, TypeError, "compressor must be a method's settings"),
        (
            {"targets": "third"},
            ValueError,
            "patterns must match names of layers or weights, got 'third'",
        ),
        ({"targets": 3}, TypeError, "not iterable"),
        ({"targets": [3]}, TypeError, "targets must be patterns of names, got 3"),
        ({"ignore": "*"}, ValueError, "at least one layer must be compressed, got none"),
        ({"targets": "norm"}, TypeError, r"layer 'norm' must be one of .*, got BatchNorm1d"),
        (
            {"ignore": "head"},
            ValueError,
            "'words.weight' must not be .* another name .* 'head.weight'",
        ),
        (
            {"compressor": {"*": LowRank(rank=2), "head": LowRank(rank=3)}},
            ValueError,
            "weights 'words.weight' and 'head.weight' are one and must have one compressor",
        ),
        ({"compressor": Prune(nm_sparsity=(2, 5))}, ValueError, "words.weight: .* multiple of 5"),
        ({"schedule": 3}, TypeError, "schedule must have begin and alpha"),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_anything_changes(arguments, kind, message):
    model = net()
    before = [type(module) for module in model.modules()]
    with pytest.raises(kind, match=message):
        apply_compression(model, **{"compressor": LowRank(rank=2), **arguments})
    assert [type(module) for module in model.modules()] == before


def test_layers_that_cannot_be_compressed_say_why():
    for layer, why in (
        (nn.Embedding(4, 8, max_norm=1.0), "must have max_norm None"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), "got ParametrizedLinear"),
        (nn.Bilinear(4, 8, 2), "must be one of Conv1d, .*, RNNCell, got Bilinear"),
        (nn.ReLU(), "must be one of .*, got ReLU"),
        (nn.LazyLinear(8), "must be called before, which gives its weight a shape"),
    ):
        with pytest.raises(TypeError, match=why):
            apply_compression(nn.ModuleDict({"x": layer}), LowRank(rank=2), targets="x")
    with pytest.raises(TypeError, match="layer 'weight' must have a weight of floats"):
        apply_compression(nn.Linear(4, 8, dtype=torch.complex64), LowRank(rank=2))
    twice = nn.Linear(8, 8)
    apply_compression(twice, LowRank(rank=2))
    with pytest.raises(TypeError, match="is compressed already"):
        apply_compression(twice, LowRank(rank=2))


def test_a_failure_in_the_middle_names_the_weight():
    model = net()
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
    with torch.no_grad():
        model.second.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"second.weight: W must be finite, got inf at \[0, 0\]"):
        compression.step(3)
    with pytest.raises(ValueError, match=r"'words.weight' must be dropped"):
        compression.finalize()


def test_a_compressor_of_ones_own():
    class Halves:
        def compress(self, W):
            return W[:, :4], np.eye(4, W.shape[1], dtype=W.dtype)

    layer, x = nn.Linear(24, 40), torch.randn(3, 24)
    W, bias = layer.weight.detach().clone(), layer.bias
    apply_compression(layer, Halves()).step()
    torch.testing.assert_close(layer(x), x[:, :4] @ W[:, :4].T + bias)


def test_factors_that_bring_their_own_product():
    class Circulant:
        """A square matrix whose rows are one row, moved on."""

        def __init__(self, row):
            self.row = row

        def tensors(self):
            return {"row": self.row}

        def forward(self, xp, tensors, x):
            n = len(self.row)
            places = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
            places = xp.asarray(places.reshape(-1), dtype=None, device=None)
            W = xp.reshape(xp.take(tensors["row"], places, axis=0), (n, n))
            return xp.matmul(x, xp.permute_dims(W, (1, 0)))

    class Compressor:
        def compress(self, W):
            return Circulant(np.array(W[0]))

    layer, x = nn.Linear(6, 6, bias=False), torch.randn(3, 6)
    W = layer.weight.detach().clone()
    compression = apply_compression(layer, Compressor(), SCHEDULE)
    dense = torch.stack([W[0].roll(i) for i in range(6)])
    compression.step(5)
    torch.testing.assert_close(layer(x), x @ (0.5 * W + 0.5 * dense).T)
    (row,) = compression.report()
    assert (row.bytes_dense, row.bytes_factors) == (6 * 6 * 4, 6 * 4)
    expected = (W - dense).square().sum() / W.square().sum()
    assert row.relative_error == pytest.approx(expected.item(), rel=1e-4)
    compression.step(7)
    torch.testing.assert_close(layer(x), x @ dense.T)
    layer(x).sum().backward()
    assert layer.weight_row.grad.shape == (6,)
    with pytest.raises(TypeError, match=r"weight must be fastfactor.methods.Factors to be"):
        compression.to_store("never")


def test_the_report_and_the_state_say_what_is_stored():
    model = net()
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE)
    assert compression.report()[1].bytes_factors is None
    assert not compression.step(0)
    assert compression.step(3).factored
    row = compression.report()[1]
    assert (row.name, row.alpha, row.bytes_dense) == ("first.weight", 1.0, 40 * 24 * 4)
    assert row.bytes_factors == 2 * (40 + 24) * 4
    assert 0 < row.relative_error < 1
    assert compression.state()["first.weight"] == {"stage": "blended", "alpha": 1.0, "last_step": 3}
    compression.step(100)
    assert compression.finalize() is model


def test_numbers_for_a_log():
    model = net()
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE, targets="first")
    dense = 40 * 24 * 4
    norm = float(model.first.weight.detach().norm())
    expected = {"alpha": 1.0, "last_step": -1.0, "bytes": dense, "norm_A": norm}
    found = compression.scalars()
    assert found == {f"first.weight/{name}": value for name, value in expected.items()}
    compression.step(5)
    found = {name.removeprefix("first.weight/"): v for name, v in compression.scalars().items()}
    B, C = model.first.weight_B, model.first.weight_C
    expected = {"alpha": 0.5, "last_step": 5, "bytes": dense + 2 * (40 + 24) * 4, "norm_A": norm}
    assert found == {**expected, "norm_B": B.norm().item(), "norm_C": C.norm().item()}
    compression.step(7)
    assert compression.scalars()["first.weight/bytes"] == 2 * (40 + 24) * 4
    assert "first.weight/norm_A" not in compression.scalars()


def test_factors_of_a_frozen_weight_are_frozen():
    model = net()
    model.first.weight.requires_grad_(False)
    compression = apply_compression(model, LowRank(rank=2), SCHEDULE, targets=["first", "second"])
    train(model, OPTIMIZERS["adam"](model.parameters()), compression, range(4))
    before = model.first.weight_B.clone()
    train(model, OPTIMIZERS["adam"](model.parameters()), compression, range(4, 9))
    assert not model.first.weight_B.requires_grad
    assert model.second.weight_B.requires_grad
    assert torch.equal(model.first.weight_B, before)
    fresh = net()
    again = apply_compression(fresh, LowRank(rank=2), SCHEDULE, targets=["first", "second"])
    fresh.first.weight.requires_grad_(False)
    fresh.load_state_dict(model.state_dict())
    assert again.report()[0].stage is State.FACTORS
    assert not fresh.first.weight_B.requires_grad
