"""Weights of PyTorch that are pruned step by step, against a loop that does it by hand."""

from __future__ import annotations

import copy
import gc
import importlib.util
import io
import pickle
import weakref

import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.methods import LowRank, Prune
from fastfactor.training import GradualPrune, Schedule, SparsityRamp, State

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import apply_compression, load_compressed
from torch import nn

pytestmark = pytest.mark.framework

SCORES = ("magnitude", "gradient", "taylor", "second_order")
RAMP = SparsityRamp(0.75, begin=2, end=11, frequency=3)
STEPS = 16


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


class Named(nn.Module):
    """A layer under a name, as in a model."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs):
        return self.layer(*inputs)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.Parameter(torch.randn(6, 2, 4))

    def forward(self, x):
        return torch.einsum("abc,nb,nc->na", self.core, x[:, :2], x[:, 2:6])


def layers():
    x, ids = torch.randn(5, 8), torch.randint(0, 10, (4, 3))
    sequence = torch.randn(4, 3, 8)
    return {
        "linear": (nn.Linear(8, 6), (x,)),
        "embedding": (nn.Embedding(10, 8), (ids,)),
        "bags": (nn.EmbeddingBag(10, 8), (ids,)),
        "conv": (nn.Conv2d(2, 4, 3, padding=1), (torch.randn(2, 2, 5, 4),)),
        "lstm": (nn.LSTM(8, 6), (sequence,)),
        "gru cell": (nn.GRUCell(8, 6), (x, torch.randn(5, 6))),
        "attention": (nn.MultiheadAttention(8, 2), (sequence, sequence, sequence)),
        "parameter": (Bare(), (x,)),
    }


def outputs_of(model, inputs):
    found = model(*inputs)
    found = found[0] if isinstance(found, tuple) else found
    return found.flatten(0, -2)


def loss_of(model, inputs, step):
    y = outputs_of(model, inputs)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(step))
    return (y - target).square().mean()


class ByHand:
    """A weight of a plain model, pruned by the published formulas."""

    def __init__(self, weight, score, decay):
        self.weight, self.score, self.decay = weight, score, decay
        self.keep = torch.ones_like(weight, dtype=torch.bool)
        self.kept_values = weight.detach().clone()
        self.mean = torch.zeros_like(weight)

    def full(self):
        return torch.where(self.keep, self.weight.detach(), self.kept_values)

    def after_step(self, step):
        g, full = self.weight.grad.to_dense(), self.full()
        new = {"gradient": g, "taylor": (full * g).abs()}.get(self.score, g**2)
        self.mean = self.decay * self.mean + (1 - self.decay) * new
        if RAMP.is_due(step):
            self.kept_values = full
            scores = {
                "magnitude": full.abs(),
                "gradient": (full * self.mean).abs(),
                "taylor": self.mean,
                "second_order": self.mean * full**2 / 2,
            }[self.score]
            n = round(RAMP.sparsity(step) * full.numel())
            order = scores.double().flatten().argsort(stable=True)
            self.keep = torch.ones_like(self.keep)
            self.keep.view(-1)[order[:n]] = False
        with torch.no_grad():
            self.weight.copy_(torch.where(self.keep, full, 0.0))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", layers())
def test_every_layer_is_pruned_as_by_hand(kind, score):
    layer, inputs = layers()[kind]
    model, plain = Named(layer), Named(copy.deepcopy(layer))
    targets = "layer.core" if kind == "parameter" else None
    prune = GradualPrune(RAMP, score=score, decay=0.8)
    compression = apply_compression(model, prune, targets=targets)
    hand = {n: ByHand(plain.get_parameter(n), score, 0.8) for n in compression.names}
    optimizers = [
        torch.optim.SGD(each.parameters(), 0.3, momentum=0.9, weight_decay=0.01)
        for each in (model, plain)
    ]
    for step in range(12):
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(each, inputs, step).backward()
            optimizer.step()
        for weight in hand.values():
            weight.after_step(step)
        change = compression.step()
        assert change.mask_changed == (step in (2, 5, 8))
        assert change.factored == change.finished == (step == 11)
        for name, weight in hand.items():
            if step < 11:
                torch.testing.assert_close(model.get_parameter(name), weight.weight)
                assert torch.equal(model.get_parameter(name) == 0, ~weight.keep)
        torch.testing.assert_close(outputs_of(model, inputs), outputs_of(plain, inputs))
    rows = compression.report()
    assert {row.stage for row in rows} == {State.FACTORS}
    assert all(row.sparsity == pytest.approx(0.75, abs=0.02) for row in rows)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_masks_hold_and_weights_return_with_what_they_had(make, score):
    model = nn.Linear(16, 12)
    ramp = SparsityRamp(0.6, begin=0, end=100, frequency=4)
    compression = apply_compression(model, GradualPrune(ramp, score=score, decay=0.5))
    settings = {"weight_decay": 0.1} | ({} if make is torch.optim.AdamW else {"momentum": 0.9})
    optimizer = make(model.parameters(), 0.05, **settings)
    x, returned, had = torch.randn(40, 16), 0, torch.zeros(12, 16)
    zero = torch.zeros(12, 16, dtype=torch.bool)
    for step in range(60):
        optimizer.zero_grad()
        loss_of(model, (x,), step % 7).backward()
        optimizer.step()
        before = model.weight.detach().clone()
        change = compression.step()
        now = model.weight.detach() == 0
        if not change.mask_changed:
            assert torch.equal(now, zero)
            continue
        assert abs(now.float().mean() - ramp.sparsity(step)) < 0.01
        back = zero & ~now
        assert torch.equal(model.weight[back], had[back])
        returned += int(back.sum())
        had[now & ~zero] = before[now & ~zero]
        zero = now
    assert returned > 0


def batch_of(step):
    return torch.randn(20, 8, generator=torch.Generator().manual_seed(100 + step))


def prepared(score="taylor", **settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    compression = apply_compression(model, GradualPrune(RAMP, score=score, decay=0.8, **settings))
    return model, compression


def trained(model, compression, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, (batch_of(step),), step).backward()
        optimizer.step()
        compression.step()


@pytest.mark.parametrize("stop", [0, 2, 4, 5, 10, 11, 13])
@pytest.mark.parametrize("score", ["magnitude", "taylor", "second_order"])
def test_a_stopped_training_goes_on_to_equal_numbers(stop, score):
    model, compression = prepared(score)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    trained(model, compression, optimizer, range(stop))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    trained(model, compression, optimizer, range(stop, STEPS))

    resumed, again = prepared(score)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    unchanged = copy.deepcopy(saved["model"])
    resumed.load_state_dict(saved["model"])
    assert unchanged.keys() == saved["model"].keys()
    assert unchanged["0._extra_state"].keys() == saved["model"]["0._extra_state"].keys()
    assert unchanged["0._extra_state"]["weight"].keys() == (
        saved["model"]["0._extra_state"]["weight"].keys()
    )
    optimizer = torch.optim.Adam(resumed.parameters(), 0.02)
    optimizer.load_state_dict(saved["optimizer"])
    trained(resumed, again, optimizer, range(stop, STEPS))
    expected, found = dict(model.named_parameters()), dict(resumed.named_parameters())
    assert expected.keys() == found.keys()
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name
    assert again.report() == compression.report()


def test_a_dense_state_loads_into_a_masked_model():
    model, compression = prepared()
    fresh = copy.deepcopy(model)
    dense = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trained(model, compression, optimizer, range(6))
    assert compression.report()[0].stage is State.MASKED
    model.load_state_dict(dense)
    assert compression.report()[0].stage is State.DENSE
    assert torch.equal(model(batch_of(0)), fresh(batch_of(0)))
    trained(model, compression, optimizer, range(STEPS))
    assert compression.report()[0].stage is State.FACTORS


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_masked_model_are_whole(copied):
    model, compression = prepared()
    trained(model, compression, torch.optim.SGD(model.parameters(), 0.1), range(6))
    twin = copied(model)
    assert torch.equal(twin(batch_of(0)), model(batch_of(0)))
    other, _ = prepared()
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(batch_of(0)), model(batch_of(0)))


@pytest.mark.parametrize("score", ["magnitude", "second_order"])
def test_what_is_not_needed_any_more_is_freed(score):
    model, compression = prepared(score)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    trained(model, compression, optimizer, range(10))
    weight = model[0].weight
    mask = model[0].compressed["weight"]._mask
    assert (mask.mean is None) == (score == "magnitude")
    assert not mask.kept.all()
    gone = [weakref.ref(each) for each in (weight, weight.grad, mask.kept, mask.values)]
    gone += [weakref.ref(each) for each in optimizer.state[weight].values()]
    del weight
    trained(model, compression, optimizer, range(10, 13))
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)
    assert (mask.kept, mask.values, mask.mean) == (None, None, None)
    assert [n for n, _ in model.named_parameters()] == [
        "0.weight_values",
        "0.bias",
        "2.weight_values",
        "2.bias",
    ]
    assert model[0].weight_values.numel() == 24


def test_gradients_are_looked_at_only_while_they_are_wanted(monkeypatch):
    looked = []
    measure = GradualPrune.measure

    def counted(self, W, gradient):
        looked.append(1)
        return measure(self, W, gradient)

    monkeypatch.setattr(GradualPrune, "measure", counted)
    model = nn.Linear(8, 8)
    ramp = SparsityRamp(0.5, begin=14, end=16)
    compression = apply_compression(model, GradualPrune(ramp, score="gradient", decay=0.5))
    optimizer, counts = torch.optim.SGD(model.parameters(), 0.1), []
    for step in range(20):
        before = len(looked)
        trained(model, compression, optimizer, [step])
        counts.append(len(looked) - before)
    assert counts == [0] * 4 + [1] * 13 + [0] * 3


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_a_changing_scale_of_gradients_changes_no_mask(score, fused):
    masks = []
    for scales in (None, (2.0**10, 2.0**3, 2.0**16)):
        model, compression = prepared(score)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
        for step in range(10):
            scale = 1.0 if scales is None else scales[step % 3]
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            optimizer.zero_grad()
            scaler.scale(loss_of(model, (batch_of(step),), step)).backward()
            scaler.step(optimizer)
            compression.step()
        masks.append(model[0].weight == 0)
    assert torch.equal(*masks)
    assert 0 < masks[0].sum() < masks[0].numel()


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_leaves_out_do_not_count(fused):
    model, compression = prepared("second_order")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(10):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, (batch_of(step),), step)).backward()
        if step in (1, 6):
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        compression.step()
    assert torch.isfinite(model[0].compressed["weight"]._mask.mean).all()
    assert compression.report()[0].stage is State.MASKED


def test_accumulated_gradients_count_once():
    masks = []
    for parts in (1, 4):
        model, compression = prepared("second_order")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(9):
            x = batch_of(step)
            optimizer.zero_grad()
            for part in x.chunk(parts):
                (model(part).square().sum() / x.numel()).backward()
            optimizer.step()
            compression.step()
        masks.append(model[2].weight == 0)
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    "settings",
    [
        {"block_shape": (2, 2)},
        {"nm_sparsity": (1, 4)},
        {"scope": "row"},
        {"block_shape": (3, 2), "pool": "max"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_blocks_patterns_and_rows(score, settings, tmp_path):
    model, compression = prepared(score, **settings)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    trained(model, compression, optimizer, range(13))
    for layer in (model[0], model[2]):
        zero = layer.full("weight").detach().numpy() == 0
        assert zero.mean() == pytest.approx(0.75, abs=0.03)
        if "block_shape" in settings:
            rows, columns = settings["block_shape"]
            rows = min(rows, len(zero))
            for r in range(0, zero.shape[0], rows):
                for c in range(0, zero.shape[1], columns):
                    block = zero[r : r + rows, c : c + columns]
                    assert block.all() or not block.any()
        if "nm_sparsity" in settings:
            assert (zero.reshape(-1, 4).sum(axis=1) == 3).all()
        if "scope" in settings:
            assert len(set(zero.sum(axis=1))) == 1
    compression.to_store(tmp_path / "small.safetensors")
    fresh = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    loaded = load_compressed(fresh, tmp_path / "small.safetensors")
    torch.testing.assert_close(loaded(batch_of(0)), model(batch_of(0)))
    with store.open_store(tmp_path / "small.safetensors") as small:
        assert small.info("0.weight").kind == "prune"


class Tied(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        self.table = nn.Embedding(12, 8, sparse=sparse)
        self.head = nn.Linear(8, 12, bias=False)
        if not sparse:
            self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


def test_tied_weights_have_one_mask():
    model = Tied()
    compression = apply_compression(model, GradualPrune(RAMP, score="taylor"))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    (row,) = compression.report()
    assert (row.sparsity, row.tied) == (0.0, ("head.weight",))
    for step in range(13):
        optimizer.zero_grad()
        loss_of(model, (torch.randint(0, 12, (9,)),), step).backward()
        optimizer.step()
        compression.step()
        if step == 9:
            assert model.head.weight is model.table.weight
            (row,) = compression.report()
            assert row.stage is State.MASKED
            assert row.sparsity == pytest.approx(RAMP.sparsity(9), abs=0.01)
            assert compression.scalars()["table.weight/sparsity"] == row.sparsity
            assert (model.head.weight == 0).float().mean() == pytest.approx(row.sparsity)
    assert model.head.weight_values is model.table.weight_values


def test_rows_that_had_no_gradient_are_pruned_first():
    model = Tied(sparse=True)
    compression = apply_compression(model, {"table": GradualPrune(RAMP, score="taylor")})
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(9):
        optimizer.zero_grad()
        loss_of(model, (torch.tensor([0, 3, 3, 5]),), step).backward()
        optimizer.step()
        compression.step()
    kept = model.table.weight != 0
    assert kept.sum() == 12 * 8 - round(RAMP.sparsity(8) * 96)
    assert kept[[0, 3, 5]].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = nn.Linear(8, 12).to(dtype)
    compression = apply_compression(model, GradualPrune(RAMP, score="second_order"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(13):
        optimizer.zero_grad()
        loss_of(model, (batch_of(step).to(dtype),), step).backward()
        optimizer.step()
        compression.step()
        if step == 7:
            mask = model.compressed["weight"]._mask
            assert mask.mean.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
            assert mask.values.dtype is dtype
    assert model.weight_values.dtype is dtype
    assert model.weight_values.numel() == 24


def test_a_schedule_counts_for_the_other_weights_only():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
    compression = apply_compression(
        model, {"0": GradualPrune(RAMP), "1": LowRank(rank=2)}, Schedule(4, -1, 1, 0.5)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stages = []
    for step in range(13):
        trained(model, compression, optimizer, [step])
        stages.append([row.stage for row in compression.report()])
    first, second = zip(*stages, strict=True)
    assert first == (State.DENSE,) * 2 + (State.MASKED,) * 9 + (State.FACTORS,) * 2
    assert second == (State.DENSE,) * 4 + (State.BLENDED,) * 2 + (State.FACTORS,) * 7
    assert compression.report()[1].sparsity is None


def test_a_compiled_model_is_compiled_once_for_all_masks():
    model, compression = prepared("magnitude")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trained(model, compression, optimizer, range(4))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch_of(0)), model(batch_of(0)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4, 10):
            trained(model, compression, optimizer, [step])
            torch.testing.assert_close(compiled(batch_of(0)), model(batch_of(0)))


def test_what_is_refused():
    with pytest.raises(ValueError, match="schedule must be None where all weights are pruned by a"):
        apply_compression(nn.Linear(8, 8), GradualPrune(RAMP), Schedule())
    with pytest.raises(ValueError, match="weight: W must have rows whose length"):
        apply_compression(nn.Linear(7, 8), GradualPrune(RAMP, nm_sparsity=(1, 4)))
    model = nn.Linear(8, 8)
    compression = apply_compression(model, GradualPrune(RAMP, score="taylor"))
    before = model.weight.detach().clone()
    compression.step(RAMP.begin)  # when nothing is pruned yet
    with pytest.raises(ValueError, match="weight: a gradient must come before the first choice"):
        compression.step(RAMP.begin + RAMP.frequency)
    with pytest.raises(ValueError, match="must be dropped before, got one with"):
        compression.finalize()
    assert torch.equal(model.weight, before)
    assert compression.state()["weight"] == {"stage": "masked", "alpha": 1.0, "last_step": 2}


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own.pop("gradual"),
        lambda own: own.update(gradual={"values": None, "mean": None}),
        lambda own: own["gradual"].pop("mean"),
        lambda own: own["gradual"].update(values=own["gradual"]["values"][:-1]),
        lambda own: own["gradual"].update(values=own["gradual"]["values"] * torch.inf),
        lambda own: own["gradual"].update(values=own["gradual"]["values"].long()),
        lambda own: own["gradual"].update(values="values"),
        lambda own: own["gradual"].update(mean=own["gradual"]["mean"][:-1]),
        lambda own: own["gradual"].update(mean=own["gradual"]["mean"] * torch.nan),
        lambda own: own["mask"].update(shape=[12, 8]),
        lambda own: own["mask"].update(bits=own["mask"]["bits"].to(torch.int8)),
        lambda own: own["mask"].update(bits=None),
        lambda own: own.update(mask=None),
        lambda own: own.update(state="dense"),
    ],
)
def test_a_hostile_state_is_refused_and_changes_nothing(change):
    model = nn.Linear(6, 16)
    compression = apply_compression(model, GradualPrune(RAMP, score="taylor"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, (batch_of(step)[:, :6],), step).backward()
        optimizer.step()
        compression.step()
    state = copy.deepcopy(model.state_dict())
    before, rows = copy.deepcopy(model.state_dict()), compression.report()
    change(state["_extra_state"]["weight"])
    with pytest.raises(CorruptDataError):
        model.load_state_dict(state)
    assert compression.report() == rows
    now = model.state_dict()
    assert torch.equal(now["weight"], before["weight"])
    for name in ("values", "mean"):
        found, expected = (
            each["_extra_state"]["weight"]["gradual"][name] for each in (now, before)
        )
        assert torch.equal(found, expected)


def test_another_compressor_refuses_the_state():
    model, compression = prepared()
    trained(model, compression, torch.optim.SGD(model.parameters(), 0.1), range(6))
    other = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    apply_compression(other, Prune(sparsity=0.5))
    with pytest.raises(CorruptDataError):
        other.load_state_dict(model.state_dict())


def test_second_order_keeps_what_the_loss_needs_where_magnitude_does_not():
    # Least squares: the loss ½ (w x − y)² has the second derivative x² by every w.
    sizes = torch.logspace(-2, 1, 16)
    best = torch.randn(4, 16) / sizes**0.8
    lost = {}
    for score in ("magnitude", "second_order"):
        torch.manual_seed(2)
        model = nn.Linear(16, 4, bias=False)
        with torch.no_grad():
            model.weight.copy_(best)
        ramp = SparsityRamp(0.5, begin=200, end=200)
        compression = apply_compression(model, GradualPrune(ramp, score=score))
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        for _ in range(201):
            x = torch.randn(8, 16) * sizes
            y = x @ best.T + torch.randn(8, 4)
            optimizer.zero_grad()
            ((model(x) - y).square().sum() / 2 / len(x)).backward()
            optimizer.step()
            compression.step()
        W = model.full("weight").detach().double()
        lost[score] = float(((W - best).square() * sizes**2).sum())
        if score == "second_order":
            kept = (best.square() * sizes**2).flatten().argsort()[32:].numpy()
            agreed = np.isin(np.flatnonzero(W.numpy()), kept).mean()
            assert agreed > 0.85
    assert lost["second_order"] < 0.1 * lost["magnitude"]
