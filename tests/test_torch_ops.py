"""PyTorch's operators by which finished layers run the kernels: values, gradients, changes."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import product_cases
import pytest
from fastfactor.errors import CorruptDataError
from fastfactor.kernels import codebooks
from product_cases import CASES, FEW, MANY, SHAPE

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
from fastfactor.adapters import TorchNamespace
from fastfactor.torch import cpu_products, ops
from fastfactor.torch.cpu_products import FAST
from fastfactor.torch.description import describe
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_changes import CHANGES, FLOATS

pytestmark = pytest.mark.framework

OUT, IN = SHAPE


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
