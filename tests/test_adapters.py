"""Products of factors in PyTorch and Keras: values and gradients of every kind."""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fastfactor.adapters import KerasNamespace, TorchNamespace
from fastfactor.methods import Factors, LowRank
from processes import run_python
from product_cases import CASES, FEW, MANY, SHAPE, check_gradients, dense, factors_of, trained

KERAS_BACKENDS = [
    name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name) is not None
]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def parameters(torch, factors, dtype):
    return {
        name: torch.nn.Parameter(torch.tensor(values))
        for name, values in trained(factors, dtype).items()
    }


def gradients_of(tensors):
    return {name: tensor.grad.double().numpy() for name, tensor in tensors.items()}


def test_the_cases_have_every_kind():
    kinds = {kind for kind, made in Factors.kinds.items() if made.__module__.startswith("fastf")}
    assert {factors_of(case).kind for case in CASES} == kinds


@pytest.mark.parametrize(
    ("namespace", "module", "message"),
    [
        (TorchNamespace, "torch", "TorchNamespace needs PyTorch, but torch is not installed: "),
        (KerasNamespace, "keras", "KerasNamespace needs Keras, but keras is not installed: "),
    ],
)
def test_what_is_not_installed_is_said(namespace, module, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"^{message}pip install {module}$"):
        namespace()


# --- PyTorch


@pytest.mark.framework
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-6)])
@pytest.mark.parametrize("lead", [(FEW,), (MANY,), (), (2, 3), (0,)])
def test_products_of_torch(torch, case, dtype, tolerance, lead):
    factors = factors_of(case)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((*lead, SHAPE[1])).astype(dtype)
    wanted = rng.standard_normal((*lead, SHAPE[0])).astype(dtype)  # the gradient of y
    tensors, inputs = parameters(torch, factors, dtype), torch.tensor(x, requires_grad=True)
    y = factors.forward(TorchNamespace(), tensors, inputs)
    (y * torch.tensor(wanted)).sum().backward()
    assert y.dtype == inputs.dtype
    assert y.shape == wanted.shape
    W = dense(factors)
    np.testing.assert_allclose(y.detach(), x @ W.T, rtol=0, atol=50 * tolerance)
    np.testing.assert_allclose(inputs.grad, wanted @ W, rtol=0, atol=50 * tolerance)
    if 0 not in lead:
        of_dense = wanted.reshape(-1, SHAPE[0]).T @ x.reshape(-1, SHAPE[1])
        check_gradients(factors, gradients_of(tensors), of_dense)


@pytest.mark.framework
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ids", [3, [], [20, 0], [[5, 5, 20], [4, 0, 5]]])
def test_rows_of_torch(torch, case, dtype, ids):
    factors = factors_of(case)
    ids = np.array(ids, np.int64)
    wanted = np.random.default_rng(2).standard_normal((*ids.shape, SHAPE[1])).astype(dtype)
    tensors = parameters(torch, factors, dtype)
    rows = factors.forward_rows(TorchNamespace(), tensors, torch.tensor(ids))
    (rows * torch.tensor(wanted)).sum().backward()
    assert rows.dtype == getattr(torch, dtype)
    np.testing.assert_allclose(rows.detach(), dense(factors)[ids], rtol=0, atol=1e-5)
    if ids.size:
        of_dense = np.zeros(SHAPE)
        np.add.at(of_dense, ids, wanted)
        check_gradients(factors, gradients_of(tensors), of_dense)


@pytest.mark.framework
@pytest.mark.parametrize("case", CASES)
def test_products_of_torch_in_bfloat16(torch, case):
    factors, xp = factors_of(case), TorchNamespace()
    tensors = {n: t.bfloat16() for n, t in parameters(torch, factors, "float32").items()}
    x = torch.eye(SHAPE[1], dtype=torch.bfloat16)
    W = dense(factors)
    tolerance = 0.05 * np.abs(W).max()
    for result, expected in (
        (factors.forward(xp, tensors, x), W.T),
        (factors.forward_rows(xp, tensors, torch.arange(SHAPE[0])), W),
    ):
        assert result.dtype == torch.bfloat16
        np.testing.assert_allclose(result.detach().float(), expected, rtol=0, atol=tolerance)


@pytest.mark.framework
@pytest.mark.parametrize("case", CASES)
def test_products_of_torch_stay_on_the_device(torch, case):
    """On one that has shapes only, so that a tensor left on the CPU is an error."""
    factors, xp = factors_of(case), TorchNamespace()
    tensors = {name: t.to("meta") for name, t in parameters(torch, factors, "float32").items()}
    for n in (FEW, MANY):
        y = factors.forward(xp, tensors, torch.zeros(n, SHAPE[1], device="meta"))
        assert (y.device.type, y.shape) == ("meta", (n, SHAPE[0]))
    rows = factors.forward_rows(xp, tensors, torch.zeros(3, dtype=torch.int64, device="meta"))
    assert (rows.device.type, rows.shape) == ("meta", (3, SHAPE[1]))
    assert all(made.device.type == "meta" for _, made in xp._made.values())


@pytest.mark.framework
def test_constants_of_torch_are_made_once_and_forgotten_with_the_factors(torch):
    factors, xp = factors_of("codebook"), TorchNamespace()
    tensors = parameters(torch, factors, "float32")
    numbers = factors._places[0]
    with torch.inference_mode():  # what is made here must serve for gradients too
        factors.forward(xp, tensors, torch.zeros(2, SHAPE[1]))
    made = xp.asarray(numbers, dtype=None, device=torch.device("cpu"))
    assert made is xp.asarray(numbers, dtype=None, device=torch.device("cpu"))
    assert made is not xp.asarray(numbers, dtype=torch.int32, device=torch.device("cpu"))
    factors.forward(xp, tensors, torch.zeros(2, SHAPE[1])).sum().backward()
    for again in (copy.deepcopy(xp), pickle.loads(pickle.dumps(xp))):
        assert again.asarray(numbers, dtype=None, device=None) is not made
        assert again.matmul(torch.ones(1, 2), torch.ones(2, 1)).item() == 2
    assert xp._made
    del factors, numbers
    gc.collect()
    assert not xp._made


@pytest.mark.framework
@pytest.mark.parametrize("case", ["low_rank", "prune", "dictionary", "codebook"])
def test_training_in_torch_lowers_the_error_and_makes_factors_again(torch, case):
    factors, xp = factors_of(case), TorchNamespace()
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.standard_normal((200, SHAPE[1])).astype(np.float32))
    target = torch.tensor(rng.standard_normal(SHAPE).astype(np.float32))
    tensors = parameters(torch, factors, "float32")
    optimizer = torch.optim.Adam(tensors.values(), lr=0.05)
    losses = []
    for _ in range(50):
        loss = ((factors.forward(xp, tensors, x) - x @ target.T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = {
        name: tensor.detach().numpy().astype(factors.tensors()[name].dtype)
        for name, tensor in tensors.items()
    }
    y = factors.forward(xp, tensors, x)
    np.testing.assert_allclose(y.detach(), x.numpy() @ dense(factors, **after).T, atol=0.05)
    zeros = factors.to_dense() == 0
    assert not dense(factors, **after)[zeros].any()


@pytest.mark.framework
def test_the_example_of_the_docs(torch):
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text("utf-8")
    (code,) = re.findall(r"^```\{code-block\} python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    W = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    names = {"LowRank": LowRank, "W": W}
    torch.manual_seed(0)
    exec(compile(code, "docs/methods.md", "exec"), names)
    plain, factors = LowRank(rank=8).compress(W), names["factors"]
    assert names["loss"] < 64 * np.mean(W**2)
    assert not np.array_equal(factors.B, plain.B)
    assert factors.error(W) < 1.1 * plain.error(W)


# --- JAX, whose functions have these names


@pytest.mark.framework
@pytest.mark.parametrize("case", CASES)
def test_products_of_jax(case):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    factors = factors_of(case)
    x = np.random.default_rng(1).standard_normal((3, SHAPE[1])).astype(np.float32)
    tensors = {name: jax.numpy.asarray(t) for name, t in trained(factors, "float32").items()}

    def loss(tensors):
        return factors.forward(jax.numpy, tensors, jax.numpy.asarray(x)).sum()

    gradients = {name: np.asarray(g, float) for name, g in jax.grad(loss)(tensors).items()}
    check_gradients(factors, gradients, np.ones((SHAPE[0], 3)) @ x)
    ids = jax.numpy.array([[3, 20]])
    rows = jax.jit(lambda tensors: factors.forward_rows(jax.numpy, tensors, ids))(tensors)
    np.testing.assert_allclose(rows, dense(factors)[np.array(ids)], rtol=0, atol=1e-5)


# --- Keras


@pytest.mark.framework
@pytest.mark.skipif(
    importlib.util.find_spec("keras") is None or not KERAS_BACKENDS, reason="Keras is not installed"
)
@pytest.mark.parametrize("backend", KERAS_BACKENDS or ["none"])
def test_products_of_keras(backend, tmp_path):
    """In a process of its own, because Keras takes its backend when it is imported."""
    done = run_python(
        "import keras_products; keras_products.main()",
        environment={
            "KERAS_BACKEND": backend,
            "KERAS_HOME": str(tmp_path),
            "JAX_ENABLE_X64": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),  # has the folder of these tests
        },
        limit=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(CASES)} cases on {backend}\n"
