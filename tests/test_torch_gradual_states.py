"""States of models that are pruned step by step: stopped, copied, freed, damaged."""

from __future__ import annotations

import copy
import gc
import importlib.util
import io
import pickle
import weakref

import pytest
from fastfactor import CorruptDataError
from fastfactor.methods import Prune
from fastfactor.training import GradualPrune, State

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import apply_compression
from torch import nn
from torch_pruning import RAMP, batch_of, loss_of, prepared, trained

pytestmark = pytest.mark.framework

SCORES = ("magnitude", "gradient", "taylor", "second_order")
STEPS = 16


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


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
