"""Finished layers of PyTorch that run the kernels: values, programs, copies, what is kept."""

from __future__ import annotations

import copy
import importlib.util
import pickle

import processes
import pytest
from fastfactor.methods import Codebook, Dictionary, EntropyCoded, Prune, PruneCodebook, Simhash

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.torch import apply_compression, operands, ops
from fastfactor.torch.cpu_products import Prepared
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_changes import CHANGES, FLOATS

pytestmark = pytest.mark.framework

LAYER_METHODS = (
    Codebook(n_bits=3),
    Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2),
    EntropyCoded(bits_per_weight=4),
    Prune(sparsity=0.6),
    PruneCodebook(n_bits=3, sparsity=0.5),
    Simhash(n_hashes=32),
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def model_of(method):
    """A finished model in eval mode: a table of words, then two layers."""
    model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32))
    apply_compression(model, method).step()
    return model


@pytest.mark.parametrize("method", LAYER_METHODS, ids=lambda method: type(method).__name__)
class TestFinishedModels:
    """Models whose layers have codes, in eval mode."""

    ids = torch.tensor([[3, 0, 39], [3, 7, 7]])

    def test_they_compute_what_they_trained(self, method):
        model = model_of(method)
        expected = model(self.ids)
        for guard in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with guard():
                y = model.eval()(self.ids)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        seed = torch.randn_like(expected)
        by_training = torch.autograd.grad(expected, list(model.parameters()), seed)
        by_kernels = torch.autograd.grad(y, list(model.parameters()), seed)
        torch.testing.assert_close(by_kernels, by_training, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_they_follow_to_another_dtype(self, method, dtype):
        model = model_of(method).eval()
        expected = model(self.ids)
        y = model.to(dtype)(self.ids)
        assert y.dtype == dtype
        tolerance = max(FLOATS[dtype], 1e-4)
        torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)

    def test_autocast_computes_as_pytorch_does(self, method):
        model = model_of(method)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            expected = model(self.ids)
            y = model.eval()(self.ids)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected)

    def test_they_are_compiled_as_one_graph(self, method):
        model = model_of(method).eval()
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(self.ids), model(self.ids), rtol=1e-5, atol=1e-5)
        seed, parameters = torch.randn(2, 3, 32), list(model.parameters())
        expected = torch.autograd.grad(model(self.ids), parameters, seed)
        found = torch.autograd.grad(compiled(self.ids), parameters, seed)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(2)
            torch.testing.assert_close(compiled(self.ids), model(self.ids), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("strict", [False, True])
    def test_they_are_exported_with_calls_of_operators(self, method, strict):
        model = model_of(method).eval()
        program = torch.export.export(model, (self.ids,), strict=strict)
        called = [str(node.target) for node in program.graph.nodes]
        assert called.count("fastfactor.linear.default") == 2
        assert called.count("fastfactor.rows.default") == 1
        with torch.no_grad():
            y = program.module()(self.ids)
        torch.testing.assert_close(y, model(self.ids), rtol=1e-5, atol=1e-5)

    def test_copies_and_pickles_are_apart(self, method):
        model = model_of(method).eval()
        expected = model(self.ids)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(self.ids), expected, rtol=0, atol=0)
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.zero_()
            assert not other(self.ids).any()
            torch.testing.assert_close(model(self.ids), expected, rtol=0, atol=0)

    def test_states_of_other_codes_are_loaded(self, method):
        first, second = model_of(method), model_of(method)
        first.eval()(self.ids)
        first.load_state_dict(second.state_dict())
        torch.testing.assert_close(first(self.ids), second.eval()(self.ids), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (lambda: nn.Conv2d(8, 24, 2, padding=1), (2, 8, 5, 6)),
            (lambda: nn.Conv1d(8, 24, 4), (2, 8, 9)),
            (lambda: nn.LSTM(16, 16, 2), (4, 3, 16)),
            (lambda: nn.GRU(16, 16), (4, 20, 16)),
            (lambda: nn.MultiheadAttention(16, 2), (4, 3, 16)),
        ],
        ids=["Conv2d", "Conv1d", "LSTM", "GRU", "MultiheadAttention"],
    )
    def test_other_layers_compute_what_they_trained(self, method, layer, shape):
        layer, x = layer(), torch.randn(shape)
        apply_compression(layer, method).step()
        given = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
        expected = layer(*given)
        torch.testing.assert_close(layer.eval()(*given), expected, rtol=1e-4, atol=1e-5)


def test_exported_programs_give_the_same_in_another_process(tmp_path):
    ids = torch.tensor([[3, 0, 39], [3, 7, 7]])
    expected = []
    for number, method in enumerate(LAYER_METHODS):
        program = torch.export.export(model_of(method).eval(), (ids,))
        torch.export.save(program, tmp_path / f"{number}.pt2")
        with torch.no_grad():
            expected.append(program.module()(ids))
    torch.save(ids, tmp_path / "ids.pt")
    code = """
        import sys, torch, fastfactor.torch
        folder, n = sys.argv[1], int(sys.argv[2])
        ids = torch.load(f"{folder}/ids.pt")
        programs = [torch.export.load(f"{folder}/{number}.pt2").module() for number in range(n)]
        with torch.no_grad():
            torch.save([program(ids) for program in programs], f"{folder}/results.pt")
    """
    processes.output_of(code, tmp_path, len(LAYER_METHODS))
    found = torch.load(tmp_path / "results.pt")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_kernels_run_in_eval_mode_on_a_cpu_and_nowhere_else(monkeypatch):
    calls = []
    counted = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *given: calls.append(1) or counted(*given))
    model, x = model_of(Codebook(n_bits=3)), torch.randn(2, 32)
    model[1](x)
    assert not calls
    model.eval()[1](x)
    assert len(calls) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model[1](x)
    model_of(Simhash(n_hashes=8)).eval()[1](x)  # PyTorch's operations are faster
    assert len(calls) == 1


def test_operators_are_called_where_something_looks_on(monkeypatch):
    """Elsewhere layers without gradients call kernels past PyTorch's dispatcher."""
    monkeypatch.setattr(operands, "SMALL_WEIGHTS", 0)
    calls = []
    counted = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *given: calls.append(1) or counted(*given))
    layer, x = model_of(Codebook(n_bits=3)).eval()[1], torch.randn(5, 2, 32)
    with torch.no_grad():
        y = layer(x)
        assert not calls
        torch.testing.assert_close(torch.vmap(layer)(x), y, rtol=0, atol=0)
        with FlopCounterMode(display=False):
            torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            layer(x)
    assert len(calls) == 3
    assert "fastfactor::linear" in {event.name for event in seen.events()}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_rebuilt_weight_is_kept_until_numbers_change(change, monkeypatch):
    calls = []
    counted = Prepared.rows
    monkeypatch.setattr(Prepared, "rows", lambda *given: calls.append(1) or counted(*given))
    layer, x = nn.Conv2d(8, 24, 2), torch.randn(2, 8, 5, 6)
    apply_compression(layer, Prune(sparsity=0.5)).step()
    layer.eval()
    with torch.inference_mode():
        before = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), before)
    assert len(calls) == 1
    change(layer.weight_values)
    with torch.no_grad():
        after = layer(x)
    assert len(calls) == 2
    assert not torch.equal(after, before)
    torch.testing.assert_close(layer.train()(x), after, rtol=1e-5, atol=1e-5)
    layer.eval()(x).sum().backward()
    assert layer.weight_values.grad.any()


def test_a_weight_rebuilt_under_autocast_is_not_kept():
    layer, x = nn.Conv2d(8, 24, 2), torch.randn(2, 8, 5, 6)
    apply_compression(layer, Simhash(n_hashes=8)).step()
    layer.eval()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
        torch.testing.assert_close(layer(x), layer.train()(x), rtol=1e-5, atol=1e-5)


def test_large_rebuilt_weights_are_not_kept(monkeypatch):
    monkeypatch.setattr(operands, "KEPT_WEIGHTS", 700)
    layer, x = nn.Conv2d(8, 24, 2), torch.randn(2, 8, 5, 6)
    apply_compression(layer, Prune(sparsity=0.5)).step()
    with torch.no_grad():
        layer.eval()(x)
    assert layer.compressed["weight"]._operands._kept is None


def test_an_embedding_refuses_ids_outside_its_table():
    model = model_of(Codebook(n_bits=3)).eval()
    with pytest.raises(IndexError, match=r"ids must be in \[0, 40\), got 40"):
        model[0](torch.tensor([40]))


def test_few_inputs_take_less_time_than_by_pytorch():
    """A finished layer reads its codes, where training rebuilds the weight."""
    layer = nn.Linear(512, 512)
    apply_compression(layer, Codebook(n_bits=4)).step()
    finished, x = copy.deepcopy(layer).eval(), torch.randn(1, 512)
    with torch.no_grad():
        assert seconds(lambda: finished(x)) < seconds(lambda: layer(x)) / 2


def seconds(call):
    import time

    call()
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)
