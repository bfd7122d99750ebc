"""Input covariances and squared gradients of a PyTorch model, which stays as it was."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
from fastfactor import compress_file, store

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import collect_statistics, wrong_class_losses
from torch import nn

pytestmark = pytest.mark.framework


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def squared_error(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).sum(dim=1).mean()


def second_moment(rows):
    rows = np.asarray(rows, np.float64)
    return rows.T @ rows / len(rows)


def test_covariance_of_linear_layers():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    batches = [torch.randn(n, 2, 5) for n in (7, 1, 4)]
    found = collect_statistics(model, batches)
    x = torch.cat(batches).reshape(-1, 5)
    hidden = torch.relu(model[0](x)).detach()
    assert list(found.input_covariance) == ["0.weight", "2.weight"]
    np.testing.assert_allclose(found.input_covariance["0.weight"], second_moment(x), rtol=1e-12)
    np.testing.assert_allclose(found.input_covariance["2.weight"], second_moment(hidden), rtol=1e-6)
    assert found.n_inputs == {"0.weight": 24, "2.weight": 24}
    assert found.importance == {}
    assert found.n_gradients == 0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
        (nn.Conv1d(3, 4, 2, padding="same", dilation=2), (3, 8)),
        (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 2, 6, 5)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (3, 2, 5, 5)),
        (nn.Conv2d(2, 4, 4, padding="same", padding_mode="circular", dilation=2), (2, 7, 8)),
    ],
    ids=str,
)
def test_covariance_of_convolutions(layer, shape):
    # A convolution with the rows of a unit matrix as its filters gives the patches.
    columns = layer.weight[0].numel()
    unit = torch.eye(columns).reshape(columns, *layer.weight.shape[1:])
    batches = [torch.randn(shape) for _ in range(3)]
    patches = [
        layer._conv_forward(x, unit, None).movedim(-layer.weight.ndim + 1, -1) for x in batches
    ]
    rows = torch.cat([p.reshape(-1, columns) for p in patches])
    found = collect_statistics(layer, batches)
    np.testing.assert_allclose(found.input_covariance["weight"], second_moment(rows), atol=1e-12)
    assert found.n_inputs == {"weight": len(rows)}
    # The error that it weighs is the squared change of the outputs.
    E = torch.randn_like(layer.weight)
    outputs = torch.stack([(layer._conv_forward(x, E, None) ** 2).sum() for x in batches])
    flat = E.reshape(len(E), -1).double().numpy()
    error = np.trace(flat @ found.input_covariance["weight"] @ flat.T)
    np.testing.assert_allclose(error * len(rows), outputs.sum().item(), rtol=1e-5)


def test_many_rows_are_summed_as_few_are(monkeypatch):
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(8, 2, 6, 6)
    whole = collect_statistics(layer, [x]).input_covariance["weight"]
    monkeypatch.setattr("fastfactor.torch.input_covariances.AT_ONCE", 50)
    parts = collect_statistics(layer, list(x)).input_covariance["weight"]
    np.testing.assert_allclose(parts, whole, atol=1e-14)


def test_squared_gradients_of_each_example():
    layer = nn.Linear(4, 3)
    x, y = torch.randn(10, 4), torch.randn(10, 3)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    found = collect_statistics(layer, batches, squared_error)
    # The gradient of ‖W x + b − y‖² is 2 (W x + b − y) xᵀ.
    left = 2 * (layer(x) - y).detach().double().numpy()
    each = left[:, :, None] * x.double().numpy()[:, None, :]
    np.testing.assert_allclose(found.importance["weight"], (each**2).mean(axis=0), rtol=1e-5)
    assert found.n_gradients == 10
    np.testing.assert_allclose(found.input_covariance["weight"], second_moment(x), rtol=1e-12)

    found = collect_statistics(layer, batches, squared_error, per_example=False)
    of_batches = np.stack([each[:6].mean(axis=0), each[6:].mean(axis=0)])
    np.testing.assert_allclose(found.importance["weight"], (of_batches**2).mean(axis=0), rtol=1e-5)
    assert found.n_gradients == 2


@pytest.mark.parametrize("n_classes", [1, 3])
def test_gradients_towards_the_most_probable_wrong_classes(n_classes):
    """α² of Denton et al., by the definition: logit gradients softmax − onehot(l)."""
    layer = nn.Linear(6, 5)
    x, y = torch.randn(12, 6), torch.randint(0, 5, (12,))

    def loss(model, batch):
        return wrong_class_losses(model(batch[0]), batch[1], n_classes)

    found = collect_statistics(layer, [(x[:7], y[:7]), (x[7:], y[7:])], loss)
    expected = np.zeros((5, 6))
    for example, label in zip(x, y, strict=True):
        p = torch.softmax(layer(example), 0).detach().double().numpy()
        wrong = [k for k in np.argsort(-p) if k != label][:n_classes]
        for k in wrong:
            d = np.outer(p - np.eye(5)[k], example.double().numpy())
            expected += d**2 / 12
    np.testing.assert_allclose(found.importance["weight"], expected, rtol=1e-4)
    assert found.n_gradients == 12


@pytest.mark.parametrize("share", [0, 0.5, 2.0])
def test_damped_importances_have_a_share_of_their_mean_more(share):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    batch = torch.randn(6, 4), torch.randn(6, 3)
    found = collect_statistics(model, [batch], squared_error)
    damped = found.damped(share)
    for name, importance in found.importance.items():
        expected = importance + share * importance.mean()
        np.testing.assert_array_equal(damped.importance[name], expected)
    assert damped.input_covariance is found.input_covariance
    assert (damped.n_inputs, damped.n_gradients) == (found.n_inputs, 6)
    with pytest.raises(ValueError, match="share must be"):
        found.damped(-1.0)


def test_wrong_classes_need_classes():
    with pytest.raises(ValueError, match=r"n_classes must be in \[1, 2\], got 3"):
        wrong_class_losses(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"logits must have shape \(batch, classes\)"):
        wrong_class_losses(torch.zeros(4, 3), torch.zeros(3))


def test_batches_of_mappings_are_cut_into_examples():
    layer = nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    plain = collect_statistics(layer, [(x, y)], squared_error)

    def loss(model, batch):
        assert batch["what"] == "kept"
        assert len(batch["x"]) == 1
        return squared_error(model, (batch["x"], batch["more"][0]))

    found = collect_statistics(layer, [{"x": x, "more": [y], "what": "kept"}], loss)
    assert np.array_equal(found.importance["weight"], plain.importance["weight"])


@pytest.mark.parametrize("sparse", [False, True])
def test_squared_gradients_of_embeddings(sparse):
    table = nn.Embedding(5, 2, sparse=sparse)
    ids = torch.tensor([[1, 1, 3], [3, 0, 0]])
    found = collect_statistics(table, [ids], lambda model, ids: model(ids).sum())
    counts = np.array([[0, 2, 0, 1, 0], [2, 0, 0, 1, 0]])  # of each row's use, by example
    expected = np.repeat((counts**2).mean(axis=0)[:, None], 2, axis=1)
    assert np.array_equal(found.importance["weight"], expected)
    assert found.input_covariance == {}


class Tied(nn.Module):
    def __init__(self, rows=6, columns=4):
        super().__init__()
        self.table = nn.Embedding(rows, columns)
        self.inner = nn.Linear(columns, columns)
        self.head = nn.Linear(columns, rows, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.inner(self.table(ids))))


def next_word(model, ids):
    return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def test_tied_weights_have_one_sum_under_both_names():
    model, ids = Tied(), torch.randint(0, 6, (5, 8))
    found = collect_statistics(model, [ids], next_word)
    expected = 0.0
    for example in ids:
        model.zero_grad()
        next_word(model, example[None]).backward()
        expected = expected + model.head.weight.grad.double().numpy() ** 2 / len(ids)
    np.testing.assert_allclose(found.importance["head.weight"], expected, rtol=1e-6)
    assert found.importance["table.weight"] is found.importance["head.weight"]
    assert found.input_covariance["table.weight"] is found.input_covariance["head.weight"]
    assert found.n_inputs["head.weight"] == 35


def test_a_layer_that_is_used_twice_has_one_sum():
    layer = nn.Linear(3, 3)
    x = torch.randn(4, 3)
    found = collect_statistics(nn.Sequential(layer, layer), [x]).input_covariance["0.weight"]
    rows = torch.cat([x, layer(x).detach()])
    np.testing.assert_allclose(found, second_moment(rows), rtol=1e-6)


class Watched(nn.Module):
    """Everything in it that a careless collector would change."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.conv.weight.requires_grad_(False)
        self.drop.eval()
        self.fails = False

    def forward(self, x):
        self.calls += 1
        assert not any(module.training for module in self.modules())
        y = self.head(self.drop(self.norm(self.conv(x))).mean(dim=2))
        if self.fails and self.calls > 2:
            raise ArithmeticError
        return y


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model, batch = Watched(), (torch.randn(4, 3, 7), torch.randn(4, 2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in model.parameters()]
    model.fails = fails
    before = copy.deepcopy(model)
    calls = model.calls
    if fails:
        with pytest.raises(ArithmeticError):
            collect_statistics(model, [batch], squared_error)
    else:
        found = collect_statistics(model, [batch], squared_error)
        assert found.importance["conv.weight"].min() > 0
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    for (name, now), was in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(now, was), name
    assert model.calls is calls
    for now, was in zip(model.parameters(), before.parameters(), strict=True):
        assert now.requires_grad == was.requires_grad
        assert now.grad is gradients.pop(0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_attention_is_run_layer_by_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(3, 5, 8)
    found = collect_statistics(layer, [x])
    # Its own projections are not called as layers.
    assert list(found.input_covariance) == ["linear1.weight", "linear2.weight"]
    trained = collect_statistics(layer, [x], lambda model, x: model(x).square().mean())
    assert trained.importance.keys() > {"self_attn.in_proj_weight", "linear1.weight"}


def test_recomputed_inputs_count_once():
    class Recomputing(nn.Linear):
        def forward(self, x):
            call = super().forward
            hidden = torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)
            return call(hidden)

    inner = nn.Linear(3, 3)
    model = Recomputing(3, 2)
    model.inner = inner
    found = collect_statistics(model, [torch.randn(4, 3)], lambda model, x: model(x).sum())
    assert found.n_inputs == {"weight": 4, "inner.weight": 4}


def test_recurrent_layers_have_squared_gradients():
    layer = nn.LSTM(3, 4)
    found = collect_statistics(
        layer, [torch.randn(5, 2, 3)], lambda model, x: model(x)[0].sum(), per_example=False
    )
    assert list(found.importance) == ["weight_ih_l0", "weight_hh_l0"]
    assert found.importance["weight_hh_l0"].min() > 0


def test_weights_are_chosen_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    batch = torch.randn(4, 3)
    found = collect_statistics(model, [batch], lambda m, x: m(x).sum(), ignore="3")
    assert list(found.importance) == list(found.input_covariance) == ["0.weight", "1.weight"]
    found = collect_statistics(model, [batch], targets=["[13].weight"], ignore="3.weight")
    assert list(found.input_covariance) == ["1.weight"]


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_covariance_of_groups_is_the_mean_of_theirs(kind, groups):
    layer = kind(4, 8, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(5, 4, *[7] * (layer.weight.ndim - 2)) * torch.arange(1.0, 5).reshape(
        -1, *[1] * (layer.weight.ndim - 2)
    )
    found = collect_statistics(layer, [x])
    plain = kind(4 // groups, 1, 3, stride=2, padding=1)
    alone = [collect_statistics(plain, [part]) for part in x.split(4 // groups, dim=1)]
    expected = np.mean([each.input_covariance["weight"] for each in alone], axis=0)
    np.testing.assert_allclose(found.input_covariance["weight"], expected, rtol=1e-12)
    assert found.n_inputs == {"weight": sum(each.n_inputs["weight"] for each in alone)}


def test_wide_layers_are_left_out_by_name():
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 5), nn.Linear(5, 2))
    with pytest.warns(UserWarning, match="no input covariance") as said:
        found = collect_statistics(model, [torch.randn(2, 4, 5)], max_columns=19)
    assert list(found.input_covariance) == ["2.weight"]
    assert [str(each.message) for each in said] == [
        "'1.weight' gets no input covariance: its inputs have 20 columns, more than max_columns=19",
    ]
    assert all(each.filename == __file__ for each in said)


def test_what_is_refused():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)

    def total(model, x):
        return model(x).sum()

    def refused(kind, text, batches=None, loss=total, model=layer, **more):
        with pytest.raises(kind, match=text):
            collect_statistics(model, [x] if batches is None else batches, loss, **more)

    refused(TypeError, "batches must be an iterable of batches, got one tensor", x)
    refused(ValueError, "at least one batch, got none", [])
    refused(ValueError, r"the lengths \[4, 3\]", [(x, x[:3])])
    refused(ValueError, r"the lengths \[\]", ["text"])
    refused(ValueError, r"the lengths \[None\]", [torch.tensor(1.0)])
    refused(TypeError, r"of one axis, got \(1, 2\)", loss=lambda model, x: model(x))
    refused(TypeError, "of one number, or of one axis, got float", loss=lambda model, x: 1.0)
    refused(ValueError, "must depend on a weight", loss=lambda model, x: x.sum())
    refused(
        ValueError, "loss must be finite, got inf", loss=lambda model, x: total(model, x) * np.inf
    )
    refused(ValueError, "inputs of 'weight' must be finite", [x * np.nan], None)
    refused(ValueError, "match names of layers or weights, got 'wight'", targets="wight")
    refused(TypeError, "ignore must be patterns", ignore=[3])
    refused(ValueError, "at least one weight must be looked at", model=nn.BatchNorm1d(3))
    refused(ValueError, "max_columns must be", max_columns=0)
    refused(TypeError, "per_example must be", per_example=1)


def trained_model():
    """A classifier whose inputs are far from white, so that errors do not count alike."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((512, 64)) * np.geomspace(0.02, 3, 64)).astype(np.float32)
    y = np.argmax(x[:, -8:], axis=1)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, x, y


def test_compressed_with_statistics_a_model_has_smaller_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, x, y = trained_model()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = collect_statistics(model, zip(x.split(64), y.split(64), strict=True), loss)
    assert found.n_gradients == found.n_inputs["0.weight"] == 512
    found.save_input_covariance("inputs.safetensors", targets="0")
    found.save_importance("importance.safetensors", ignore="0")
    torch.save(model.state_dict(), "model.pt")
    recipe = {"default": {"method": "codebook", "n_bits": 2}, "min_size": 1}
    compress_file("model.pt", "plain.safetensors", recipe)
    report = compress_file(
        "model.pt",
        "weighed.safetensors",
        recipe,
        importance="importance.safetensors",
        input_covariance="inputs.safetensors",
    )
    assert [row.metric for row in report.compressed] == ["input_covariance", "importance"]
    weighers = {
        "0.weight": {"input_covariance": found.input_covariance["0.weight"]},
        "2.weight": {"importance": found.importance["2.weight"]},
    }
    with (
        store.open_store("plain.safetensors") as plain,
        store.open_store("weighed.safetensors") as own,
    ):
        for name, weigher in weighers.items():
            W = model.state_dict()[name].numpy()
            assert own[name].error(W, **weigher) < 0.9 * plain[name].error(W, **weigher)
            if "importance" in weigher:
                continue
            # The error under the covariance is that of the layer's outputs.
            lost = [np.sum((x.numpy() @ (W - s[name].to_dense()).T) ** 2) for s in (own, plain)]
            ratio = own[name].error(W, **weigher) / plain[name].error(W, **weigher)
            np.testing.assert_allclose(lost[0] / lost[1], ratio, rtol=1e-4)


@pytest.mark.parametrize("what", ["importance", "input_covariance"])
def test_tied_weights_stay_tied_in_the_file(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, ids = Tied(300, 64), torch.randint(0, 300, (4, 16))
    found = collect_statistics(model, [ids], next_word)
    getattr(found, f"save_{what}")("weights.safetensors")
    torch.save(model.state_dict(), "model.pt")
    recipe = {"default": {"method": "codebook", "n_bits": 3}, "min_size": 1}
    compress_file("model.pt", "small.safetensors", recipe, **{what: "weights.safetensors"})
    with store.open_store("small.safetensors") as small:
        assert small.info("head.weight").same_as == "table.weight"
        weigher = {what: getattr(found, what)["table.weight"]}
        W = model.head.weight.detach().numpy()
        from_file = small["head.weight"].error(W, **weigher)
    compress_file("model.pt", "small.safetensors", recipe)
    with store.open_store("small.safetensors") as small:
        assert from_file < small["head.weight"].error(W, **weigher)


def test_saving_refuses_to_write_nothing(tmp_path):
    found = collect_statistics(nn.Linear(3, 2), [torch.randn(4, 3)])
    with pytest.raises(ValueError, match="at least one weight must be written, got none of 0"):
        found.save_importance(tmp_path / "importance.safetensors")
    with pytest.raises(ValueError, match="at least one weight must be written, got none of 1"):
        found.save_input_covariance(tmp_path / "inputs.safetensors", ignore=found.input_covariance)
    assert not list(tmp_path.iterdir())
