"""PyTorch's operators by which finished layers run the kernels: values, gradients, changes."""

from __future__ import annotations

import copy
import gc
import importlib.util
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import processes
import product_cases
import pytest
from fastfactor.errors import CorruptDataError
from fastfactor.kernels import codebooks
from fastfactor.methods import Codebook, Dictionary, EntropyCoded, Prune, PruneCodebook, Simhash
from product_cases import CASES, FEW, MANY, SHAPE

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.adapters import TorchNamespace
from fastfactor.torch import apply_compression, cpu_products, operands, ops
from fastfactor.torch.cpu_products import FAST, Prepared
from fastfactor.torch.description import describe
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.framework

OUT, IN = SHAPE
FLOATS = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}
LAYER_METHODS = (
    Codebook(n_bits=3),
    Dictionary(n_nonzero_coefs=2, block_size=8, n_atoms=16, max_iter=2),
    EntropyCoded(bits_per_weight=4),
    Prune(sparsity=0.6),
    PruneCodebook(n_bits=3, sparsity=0.5),
    Simhash(n_hashes=32),
)


class Weight:
    """Factors as an operator is given them."""

    def __init__(self, factors, dtype=torch.float32):
        self.factors = factors
        self.names = tuple(name for name in factors.trainable if name in factors.tensors())
        self.text, self.fixed = describe(factors, self.names)
        self.trained = [
            torch.from_numpy(factors.tensors()[name].astype(np.float64)).to(dtype).requires_grad_()
            for name in self.names
        ]

    @property
    def arguments(self):
        return [*self.trained, self.fixed], self.text

    def linear(self, x):
        return ops.linear(x, *self.arguments)

    def rows(self, ids):
        return ops.rows(ids, *self.arguments)

    def plain_linear(self, x):
        """By PyTorch's operations."""
        named = dict(zip(self.names, self.trained, strict=True))
        return self.factors.forward(TorchNamespace(), named, x)

    def plain_rows(self, ids):
        named = dict(zip(self.names, self.trained, strict=True))
        return self.factors.forward_rows(TorchNamespace(), named, ids)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=CASES)
def factors(request):
    return product_cases.factors_of(request.param)


def inputs(batch, dtype=torch.float32, **options):
    return torch.randn(batch, IN, dtype=dtype, **options)


IDS = torch.tensor([[3, 0, 20], [3, 7, 7]])


def model_of(method):
    """A finished model in eval mode: a table of words, then two layers."""
    model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32))
    apply_compression(model, method).step()
    return model


def test_operators_are_registered_as_pytorch_wants_them(factors):
    weight = Weight(factors)
    for operator, given in ((ops.linear, inputs(3, requires_grad=True)), (ops.rows, IDS)):
        torch.library.opcheck(operator, (given, *weight.arguments))


def test_operators_of_gradients_are_registered_as_pytorch_wants_them(factors):
    weight = Weight(factors)
    tensors, text = weight.arguments
    tensors = [tensor.detach() for tensor in tensors]
    wanted = [True] * len(weight.trained) + [False]
    y, rows = torch.randn(3, OUT), torch.randn(*IDS.shape, IN)
    # They have no gradients of their own, which is all that is left out.
    tests = ("test_schema", "test_faketensor")
    for operator, given in (
        (ops.linear_gradients, (y, inputs(3), tensors, text, [True, *wanted])),
        (ops.rows_gradients, (rows, IDS, tensors, text, wanted)),
    ):
        torch.library.opcheck(operator, given, test_utils=tests)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_are_those_of_the_plain_product(factors, dtype):
    weight, tolerance = Weight(factors, dtype), FLOATS[dtype]
    for batch in (FEW, MANY, 300):
        x = inputs(batch, dtype)
        expected = weight.plain_linear(x)
        for guard in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with guard():
                y = weight.linear(x)
            assert y.dtype == dtype
            torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    for ids in (IDS, IDS.int(), torch.arange(OUT).repeat(2)):
        rows = weight.rows(ids)
        assert rows.dtype == dtype
        torch.testing.assert_close(rows, weight.plain_rows(ids), rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_the_plain_product(factors):
    weight, x = Weight(factors), inputs(MANY, requires_grad=True)
    seed = torch.randn(MANY, OUT)
    expected = torch.autograd.grad(weight.plain_linear(x), [x, *weight.trained], seed)
    found = torch.autograd.grad(weight.linear(x), [x, *weight.trained], seed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (only_x,) = torch.autograd.grad(weight.linear(x), [x], seed)
    torch.testing.assert_close(only_x, expected[0], rtol=1e-5, atol=1e-5)
    seed = torch.randn(*IDS.shape, IN)
    expected = torch.autograd.grad(weight.plain_rows(IDS), weight.trained, seed)
    found = torch.autograd.grad(weight.rows(IDS), weight.trained, seed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_gradients_are_refused():
    x = inputs(2, requires_grad=True)
    y = Weight(product_cases.factors_of("codebook")).linear(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def optimizer_step(parameter):
    parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam([parameter], lr=0.1).step()


def other_state(parameter):
    layer = nn.Module()
    layer.own = parameter
    layer.load_state_dict({"own": parameter.detach() * 2})


def through_data(parameter):
    parameter.data.mul_(3)


def other_data(parameter):
    parameter.data = parameter.data * 2


def other_strides(parameter):
    values = torch.empty(*parameter.shape[:-1], parameter.shape[-1], 2)[..., 0]
    parameter.data = values.copy_(parameter.data * 2)


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 2


CHANGES = (optimizer_step, other_state, through_data, other_data, other_strides, through_numpy)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_of_trained_numbers_is_noticed(factors, change):
    weight, x = Weight(factors), inputs(FEW)
    for index, parameter in enumerate(weight.trained):
        before = weight.linear(x), weight.rows(IDS)
        weight.trained[index] = parameter = nn.Parameter(parameter.detach())
        weight.linear(x)
        change(parameter)
        y, rows = weight.linear(x), weight.rows(IDS)
        assert not torch.equal(y, before[0])
        assert not torch.equal(rows, before[1])
        torch.testing.assert_close(y, weight.plain_linear(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rows, weight.plain_rows(IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["prune_codebook", "deep_compression"])
def test_tables_that_kernels_refuse_go_through_pytorch(case):
    weight, x = Weight(product_cases.factors_of(case)), inputs(3)
    weight.linear(x)
    with torch.no_grad():
        weight.trained[0].add_(0.25)  # no zero is left
    torch.testing.assert_close(weight.linear(x), weight.plain_linear(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        weight.trained[0].fill_(float("nan"))
    torch.testing.assert_close(weight.linear(x), weight.plain_linear(x), equal_nan=True)


def test_inputs_may_lie_in_memory_in_any_way(factors):
    weight, x = Weight(factors), torch.randn(2 * IN, 6)
    for view in (x[::2].T, x[:IN].T.contiguous(), x[:IN].T[:, None, :].expand(6, 2, IN), x[:IN, 0]):
        y = weight.linear(view)
        assert y.is_contiguous()
        expected = weight.plain_linear(view.contiguous())
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    ids = torch.arange(12).reshape(4, 3).T
    torch.testing.assert_close(weight.rows(ids), weight.plain_rows(ids.contiguous()))


@pytest.mark.parametrize("lead", [(0,), (3, 0)])
def test_empty_batches(factors, lead):
    weight = Weight(factors)
    x = torch.zeros(*lead, IN, requires_grad=True)
    y = weight.linear(x)
    assert y.shape == (*lead, OUT)
    y.sum().backward()
    assert not any(tensor.grad.any() for tensor in weight.trained)
    assert weight.rows(torch.zeros(lead, dtype=torch.int64)).shape == (*lead, IN)


def test_what_pytorch_refuses_is_refused(factors):
    weight = Weight(factors)
    with pytest.raises(RuntimeError, match=r"x must have the shape \(\.\.\., 16\), got \(2, 15\)"):
        weight.linear(torch.zeros(2, IN - 1))
    with pytest.raises(RuntimeError, match=r"x must have the dtype .*float32, got torch.float64"):
        weight.linear(torch.zeros(2, IN, dtype=torch.float64))
    for outside in (-1, OUT):
        with pytest.raises(IndexError, match=rf"ids must be in \[0, 21\), got {outside}"):
            weight.rows(torch.tensor([0, outside]))
    with pytest.raises(RuntimeError, match=r"tensors must be .* got 1 tensors"):
        ops.linear(torch.zeros(2, IN), [weight.fixed], weight.text)


def test_damaged_bytes_and_unknown_kinds_are_refused():
    weight, x = Weight(product_cases.factors_of("prune")), inputs(2)
    with pytest.raises(ValueError, match="the last of tensors must have"):
        ops.linear(x, [*weight.trained, weight.fixed[:-8]], weight.text)
    with pytest.raises(CorruptDataError, match="values"):
        ops.linear(x, [*weight.trained, torch.full_like(weight.fixed, 255)], weight.text)
    with pytest.raises(RuntimeError, match="must be imported before"):
        ops.linear(x, [*weight.trained, weight.fixed], weight.text.replace('"prune"', '"own"'))


def test_pytorchs_number_of_threads_is_used_and_changes_no_bits(factors, monkeypatch):
    weight, x = Weight(factors), inputs(MANY)
    one = weight.linear(x), weight.rows(IDS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if factors.kind in FAST:
        assert torch.equal(weight.linear(x), one[0])
        assert torch.equal(weight.rows(IDS), one[1])
    if factors.kind == "codebook":
        kernel, given = codebooks.kernels.codebook_rows, []

        def recorded(*arguments, n_threads, **others):
            given.append(n_threads)
            return kernel(*arguments, n_threads=n_threads, **others)

        monkeypatch.setattr(codebooks.kernels, "codebook_rows", recorded)
        weight.rows(IDS)
        assert given == [3]


def test_several_threads_may_call_at_once(factors):
    weight, x = Weight(factors), inputs(4)
    expected = weight.plain_linear(x).detach()
    fresh = Weight(factors)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: fresh.linear(x).detach(), range(40)):
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_goes_with_the_weight():
    weight = Weight(product_cases.factors_of("prune"))
    weight.linear(inputs(2))
    held = cpu_products.prepared(*weight.arguments)
    assert cpu_products.prepared(*weight.arguments) is held
    key = id(weight.fixed)
    assert key in cpu_products._prepared
    gone = weakref.ref(held), weakref.ref(weight.trained[0])
    del held, weight
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert key not in cpu_products._prepared


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="PyTorch before 2.5")
def test_vmap_takes_all_inputs_at_once():
    weight, x = Weight(product_cases.factors_of("codebook")), torch.randn(2, 3, IN)
    with torch.no_grad():
        mapped = torch.vmap(weight.linear, in_dims=1)(x)
        rows = torch.vmap(weight.rows)(IDS)
    torch.testing.assert_close(mapped, weight.linear(x).transpose(0, 1))
    torch.testing.assert_close(rows, weight.rows(IDS))


def test_counters_of_operations_see_gradients_too():
    weight, x = Weight(product_cases.factors_of("codebook")), inputs(3, requires_grad=True)
    seed = torch.randn(3, OUT)
    expected = torch.autograd.grad(weight.plain_linear(x), [x], seed)
    with FlopCounterMode(display=False):
        found = torch.autograd.grad(weight.linear(x), [x], seed)
    torch.testing.assert_close(found, expected)


# --- layers


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
