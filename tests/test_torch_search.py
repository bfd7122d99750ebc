"""The search for convolutions to factor, factors in place of weights, and layers in turn."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import pytest
from fastfactor.methods import Codebook, ConvBicluster, ConvMonochromatic, ConvSVD, LowRank

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import (
    apply_compression,
    collect_statistics,
    insert_factors,
    layer_by_layer,
    measuring,
    search_convolutions,
    search_measurements,
)
from torch import nn

pytestmark = pytest.mark.framework


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def network():
    """With weights of which ranks of some layers lose little."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 24, 5), nn.Conv2d(24, 16, 3, 2)
    )
    with torch.no_grad():
        W = model[2].weight
        W.copy_((torch.randn(24, 3) @ torch.randn(3, 400)).reshape(W.shape) / 20)
    return model.eval()


class Quality:
    """Minus the relative error of the outputs; counts its calls."""

    def __init__(self, model, x):
        self.model, self.x, self.n = copy.deepcopy(model), x, 0

    def __call__(self, model):
        self.n += 1
        with torch.no_grad():
            y = self.model(self.x)
            return -float((model(self.x) - y).square().mean() / y.square().mean())


CANDIDATES = [ConvSVD(ratio=ratio) for ratio in (1.5, 2, 4, 8)]


def test_what_is_chosen_together_loses_no_more_than_allowed():
    model, x = network(), torch.randn(4, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    quality, sizes = Quality(model, x), []
    for max_loss in (0.01, 0.1, 0.5):
        found = search_convolutions(
            model, x, quality, max_loss, goal="bytes", candidates=CANDIDATES
        )
        assert found.quality_dense == 0
        assert found.quality == pytest.approx(quality(found.model), abs=1e-6)
        assert found.quality >= -max_loss
        chosen = [row for row in found.rows if row.chosen]
        assert {row.name for row in chosen} == found.compressors.keys()
        sizes.append(sum(row.bytes_dense - row.bytes_factors for row in chosen))
        # The compressors give the same network again.
        again = copy.deepcopy(model)
        apply_compression(again, found.compressors).step()
        torch.testing.assert_close(again.eval()(x), found.model(x))
        assert f"{found.quality:.4f}" in found.to_text()
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert "2.weight" in found.compressors
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(("seconds", "is_tried"), [(0.98, False), (0.5, True)])
def test_a_candidate_must_be_faster_to_be_tried(monkeypatch, seconds, is_tried):
    monkeypatch.setattr(
        search_measurements, "seconds_of", lambda functions, n_rounds: [1.0, seconds]
    )
    model, x = network(), torch.randn(1, 3, 16, 16)
    quality = Quality(model, x)
    candidates = {"2.weight": [ConvSVD(ranks=(16, 24)), ConvBicluster(n_clusters=(3, 5), ratio=2)]}
    found = search_convolutions(model, x, quality, 10.0, candidates=candidates)
    # 3 clusters do not divide 16 channels, so that the second is none.
    assert [(row.method, row.quality is not None, row.chosen) for row in found.rows] == [
        ("ConvSVD(ranks=(16, 24))", is_tried, is_tried)
    ]
    assert (found.compressors != {}) == is_tried
    assert quality.n == (3 if is_tried else 1)


@pytest.mark.parametrize("n", [1, 4])
def test_measured_times_are_medians_of_rounds(monkeypatch, n):
    clock = iter(range(10**6))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock) * 1e-3)
    calls = []
    found = measuring.seconds_of([lambda: calls.append("a"), lambda: calls.append("b")], n)
    assert found == pytest.approx([5e-4, 5e-4])  # two calls in each millisecond
    assert calls == ["a"] * 2 + ["b"] * 2 + ["a", "a", "b", "b"] * n


def test_a_search_goes_on_where_it_was_stopped(tmp_path):
    model, x = network(), torch.randn(2, 3, 16, 16)
    given = {"goal": "bytes", "candidates": CANDIDATES, "folder": tmp_path}

    class Stopped(Quality):
        def __call__(self, model):
            if self.n == 5:
                raise KeyboardInterrupt
            return super().__call__(model)

    with pytest.raises(KeyboardInterrupt):
        search_convolutions(model, x, Stopped(model, x), 0.1, **given)
    kept = json.loads((tmp_path / "search.json").read_text())
    lines = []
    quality = Quality(model, x)
    found = search_convolutions(model, x, quality, 0.1, **given, progress=lines.append)
    assert len(lines) == len(found.rows)
    # The dense network and four candidates were measured before.
    whole = Quality(model, x)
    fresh = search_convolutions(model, x, whole, 0.1, goal="bytes", candidates=CANDIDATES)
    assert quality.n == whole.n - 5
    assert {row.name for row in fresh.rows if row.chosen} == found.compressors.keys()
    again = json.loads((tmp_path / "search.json").read_text())
    assert kept.items() <= again.items()
    # A third search measures nothing but the time of the whole network.
    third = search_convolutions(model, x, Stopped(model, x), 0.1, **given)
    assert third.rows == found.rows
    assert (third.quality, third.compressors) == (found.quality, found.compressors)
    assert json.loads((tmp_path / "search.json").read_text()) == again


def test_measurements_of_others_and_damaged_ones_are_refused(tmp_path):
    model, x = network(), torch.randn(2, 3, 16, 16)
    given = {"goal": "bytes", "candidates": CANDIDATES[:1], "folder": tmp_path}
    search_convolutions(model, x, Quality(model, x), 0.1, **given)
    other = network()
    with pytest.raises(ValueError, match="must hold the measurements of this model, example, goal"):
        search_convolutions(other, x, Quality(other, x), 0.1, **given)
    statistics = collect_statistics(model, [x])
    for change in (
        {"statistics": statistics},
        {"goal": "seconds"},
    ):
        with pytest.raises(ValueError, match="must hold the measurements of this model, example"):
            search_convolutions(model, x, Quality(model, x), 0.1, **{**given, **change})
    for text in ("[1, 2]", "{", '{"a": 3}'):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(ValueError, match=r"search.json must hold the measurements"):
            search_convolutions(model, x, Quality(model, x), 0.1, **given)
        assert (tmp_path / "search.json").read_text() == text


def test_statistics_weigh_the_errors():
    model = network()
    x = torch.randn(8, 3, 16, 16) * torch.tensor([4.0, 0.1, 0.1])[:, None, None]
    statistics = collect_statistics(model, [x])
    given = {"goal": "bytes", "candidates": [ConvSVD(ranks=(3, 8)), ConvSVD(ranks=(9, 6))]}
    results = [
        search_convolutions(model, x, Quality(model, x), 9.0, statistics=each, **given)
        for each in (None, statistics)
    ]
    plain, weighed = ([row.quality for row in found.rows] for found in results)
    assert sum(weighed) > sum(plain)
    others = collect_statistics(
        nn.Sequential(nn.Identity(), nn.Identity(), nn.Conv2d(3, 4, 3)), [x]
    )
    with pytest.raises(ValueError, match="input_covariance must have shape"):
        search_convolutions(model, x, Quality(model, x), 9.0, statistics=others, **given)


def test_first_layers_are_offered_colors_and_others_clusters():
    model, x = network(), torch.randn(1, 3, 12, 12)
    found = search_convolutions(model, x, Quality(model, x), 0.3, goal="bytes")
    kinds = {name: {r.method.split("(")[0] for r in found.rows if r.name == name} for name in NAMES}
    plain = {"ConvSVD", "ConvCP", "ConvSeparable"}
    assert kinds["0.weight"] == plain | {"ConvMonochromatic"}
    assert kinds["2.weight"] == kinds["3.weight"] == plain | {"ConvBicluster"}


NAMES = ("0.weight", "2.weight", "3.weight")


def test_what_a_search_refuses():
    model, x = network(), torch.randn(1, 3, 16, 16)

    def refused(kind, text, **given):
        with pytest.raises(kind, match=text):
            search_convolutions(model, x, lambda model: 0.0, **{"max_loss": 1.0, **given})

    refused(ValueError, "max_loss must", max_loss=-1.0)
    refused(ValueError, "goal must be", goal="fun")
    refused(TypeError, "candidates must be methods for convolutions", candidates=[LowRank(rank=1)])
    refused(ValueError, "at least one convolution must be looked at", ignore="*")
    refused(TypeError, "targets must be patterns", targets=[3])


def test_a_figure_shows_each_candidate_and_rings_the_chosen(tmp_path):
    pytest.importorskip("matplotlib")
    from fastfactor.figures import save_search_figure
    from fastfactor.figures.search import search_figure

    model, x = network(), torch.randn(1, 3, 16, 16)
    given = {"goal": "bytes", "candidates": CANDIDATES, "ignore": "0"}
    found = search_convolutions(model, x, Quality(model, x), 0.3, **given)
    for over, before, after in (
        ("bytes", "bytes_dense", "bytes_factors"),
        ("seconds", "seconds_dense", "seconds_factors"),
    ):
        panels = search_figure(found, over).axes
        assert [axes.get_title() for axes in panels] == ["2.weight", "3.weight"]
        for axes, name in zip(panels, ("2.weight", "3.weight"), strict=True):
            rows = [row for row in found.rows if row.name == name]
            points, rings = (each.get_offsets() for each in axes.collections)
            expected = [(getattr(r, before) / getattr(r, after), r.quality) for r in rows]
            np.testing.assert_allclose(points, expected)
            ringed = [point for point, r in zip(expected, rows, strict=True) if r.chosen]
            np.testing.assert_allclose(rings, np.reshape(ringed, (-1, 2)))
    save_search_figure(found, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="over must be one of 'seconds', 'bytes', got 'size'"):
        save_search_figure(found, tmp_path / "search.png", over="size")
    none = search_convolutions(model, x, Quality(model, x), 0.3, candidates={})
    with pytest.raises(ValueError, match="a candidate must have gained something"):
        save_search_figure(none, tmp_path / "search.png")


# --- factors in place of weights


def test_factors_take_the_place_of_weights():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 6))
    x = torch.randn(5, 4, 3, 3)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters() if p.ndim > 1}
    factors = {
        "0.weight": ConvMonochromatic(n_colors=4).compress(weights["0.weight"]),
        "2.weight": Codebook(n_bits=4).compress(weights["2.weight"]),
    }
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in factors.items():
            own = other.get_parameter(name)
            own.copy_(torch.from_numpy(value.to_dense()).reshape(own.shape))
    assert insert_factors(model, factors) is model
    torch.testing.assert_close(model(x), other(x))


def test_factors_that_do_not_fit_are_refused_and_nothing_changes():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(8, 4))
    model[2].weight = model[1].weight
    good = LowRank(rank=1).compress(np.ones((8, 4), np.float32))
    for factors, kind, text in (
        ({"0.weight": np.ones((8, 4))}, TypeError, "factors of '0.weight' must be Factors"),
        ({"0.weight": good, "1.weight": good}, ValueError, r"of a matrix of shape \(4, 8\)"),
        ({"7.weight": good}, ValueError, "names must be those of the model's weights"),
        ({"0.bias": good}, TypeError, "the layer of '0.bias' must have a weight of two axes"),
        (
            {"1.weight": LowRank(rank=1).compress(np.ones((4, 8), np.float32))},
            ValueError,
            "'1.weight' must not be a parameter under another name, got '2.weight'",
        ),
    ):
        with pytest.raises(kind, match=text):
            insert_factors(model, factors)
        assert {type(layer) for layer in model} == {nn.Linear}


# --- one layer after the other


def test_layers_are_factored_in_turn_as_they_are_then():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    model[3].bias.requires_grad_(False)
    seen = []
    for stage in layer_by_layer(model, ConvSVD(ranks=(2, 3)), ignore="3"):
        trained = {id(p) for p in stage.parameters}
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        assert names == [n for n, p in model.named_parameters() if id(p) in trained]
        seen.append((stage.name, names))
        with torch.no_grad():
            for parameter in stage.parameters:
                parameter.mul_(2)
        if stage.name == "0.weight":
            expected = ConvSVD(ranks=(2, 3)).compress(model[2].weight.detach().numpy())
    assert seen == [
        ("0.weight", ["2.weight", "2.bias", "3.weight"]),
        ("2.weight", ["3.weight"]),
    ]
    found = model[2].full("weight").detach().numpy()
    np.testing.assert_allclose(found, expected.to_dense().reshape(found.shape), atol=1e-6)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["3.bias"]


def test_what_does_not_fit_is_refused_before_the_first_layer():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 9, 3))
    with pytest.raises(ValueError, match=r"1.weight: n_colors must divide the 9 filters"):
        next(layer_by_layer(model, ConvMonochromatic(n_colors=2)))
    assert {type(layer) for layer in model} == {nn.Conv2d}
