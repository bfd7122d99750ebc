"""Chains of convolutions against sliding windows in NumPy."""

import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from fastfactor.kernels.convolution import ConvChain, conv_chain
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view


def convolve(x, weight, groups, stride, padding, dilation):
    """One convolution of float64 images, by sliding windows."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    windows = sliding_window_view(x, spans, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    parts = [
        np.einsum("nchwij,fcij->nfhw", part, filters)
        for part, filters in zip(
            np.split(windows, groups, axis=1), np.split(weight, groups), strict=True
        )
    ]
    return np.concatenate(parts, axis=1)


def oracle(x, stages, order=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), bias=None):
    """The stages one by one; along an axis without a window, the first one takes the steps."""
    x = x.astype(np.float64)
    owners = [
        next((s for s, stage in enumerate(stages) if stage[1].shape[2 + axis] > 1), 0)
        for axis in range(2)
    ]
    for s, (before, weight, groups) in enumerate(stages):
        x = x if before is None else x[:, before]
        own = [owner == s for owner in owners]
        steps = [
            [value if mine else neutral for value, mine in zip(values, own, strict=True)]
            for values, neutral in ((stride, 1), (padding, 0), (dilation, 1))
        ]
        x = convolve(x, weight.astype(np.float64), groups, *steps)
    x = x if order is None else x[:, order]
    return x if bias is None else x + bias[:, None, None]


def random_stage(rng, channels, filters, groups, kernel=(1, 1), ordered=True):
    weight = rng.standard_normal((filters, channels // groups, *kernel)).astype(np.float32)
    return rng.permutation(channels) if ordered else None, weight, groups


def assert_close(found, expected, stages):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    depth = sum(weight[0].size for _, weight, _ in stages)
    atol = 2e-7 * depth * max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# (channels, filters, groups, window) of each stage
CHAINS = {
    "pointwise": [(6, 5, 1, (1, 1))],
    "window": [(4, 9, 1, (3, 3))],
    "depthwise": [(20, 20, 20, (5, 5))],
    "two filters a channel": [(5, 10, 5, (3, 3))],
    "monochromatic": [(3, 6, 1, (1, 1)), (6, 96, 6, (7, 7))],
    "monochromatic 12": [(3, 12, 1, (1, 1)), (12, 96, 12, (7, 7))],
    "svd": [(12, 20, 2, (1, 1)), (20, 28, 4, (5, 5)), (28, 22, 2, (1, 1))],
    "cp": [(8, 64, 4, (1, 1)), (64, 64, 64, (5, 5)), (64, 18, 2, (1, 1))],
    "rows, columns": [(5, 7, 1, (4, 1)), (7, 6, 1, (1, 3))],
    "columns, rows": [(5, 7, 1, (1, 4)), (7, 6, 1, (3, 1))],
    "cp, separable": [
        (4, 18, 1, (1, 1)),
        (18, 18, 18, (3, 1)),
        (18, 18, 18, (1, 3)),
        (18, 5, 1, (1, 1)),
    ],
    "window first": [(4, 12, 2, (3, 3)), (12, 10, 1, (1, 1)), (10, 9, 1, (1, 1))],
}
STEPS = [
    {},
    {"padding": (2, 2)},
    {"stride": (2, 2), "padding": (3, 3)},
    {"stride": (1, 3), "padding": (0, 4), "dilation": (2, 1)},
    {"stride": (9, 2), "padding": (1, 7), "dilation": (1, 3)},
]


def chain_of(rng, name):
    return [random_stage(rng, *sizes) for sizes in CHAINS[name]]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [(7, 9), (16, 15), (9, 33), (31, 70)])
@pytest.mark.parametrize("steps", STEPS)
def test_matches_oracle(rng, name, size, steps):
    stages = chain_of(rng, name)
    x = rng.standard_normal((2, CHAINS[name][0][0], *size)).astype(np.float32)
    filters = CHAINS[name][-1][1]
    order, bias = rng.permutation(filters), rng.standard_normal(filters).astype(np.float32)
    chain = ConvChain(stages, order)
    if window_fits(size, chain.kernel, steps):
        found = conv_chain(x, chain, bias=bias, **steps)
        assert_close(found, oracle(x, stages, order, bias=bias, **steps), stages)
    else:
        with pytest.raises(ValueError, match="at least as large as the window"):
            conv_chain(x, chain, bias=bias, **steps)


def window_fits(size, kernel, steps):
    padding, dilation = steps.get("padding", (0, 0)), steps.get("dilation", (1, 1))
    sizes = zip(size, kernel, padding, dilation, strict=True)
    return all(n + 2 * p > d * (k - 1) for n, k, p, d in sizes)


@st.composite
def problems(draw):
    """Draw stages, images and steps; windows are in one stage or one along each axis."""
    n_stages = draw(st.integers(1, 4))
    owners = [draw(st.integers(0, n_stages - 1)) for _ in range(2)]
    kernel = [draw(st.integers(1, 6)) for _ in range(2)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels, stages = draw(st.integers(1, 4)), []
    channels *= (groups := draw(st.sampled_from([1, 1, 2, 3, 16])))
    first = channels
    for s in range(n_stages):
        size = tuple(k if owner == s else 1 for k, owner in zip(kernel, owners, strict=True))
        filters = groups * draw(st.integers(1, 19))
        stages.append(random_stage(rng, channels, filters, groups, size, draw(st.booleans())))
        channels = filters
        groups = draw(st.sampled_from([g for g in (1, 2, 3, channels) if channels % g == 0]))
    steps = {
        "stride": tuple(draw(st.integers(1, 4)) for _ in range(2)),
        "padding": tuple(draw(st.integers(0, 4)) for _ in range(2)),
        "dilation": tuple(draw(st.integers(1, 3)) for _ in range(2)),
    }
    least = [
        max(1, d * (k - 1) + 1 - 2 * p)
        for k, d, p in zip(kernel, steps["dilation"], steps["padding"], strict=True)
    ]
    sizes = [n + draw(st.integers(0, 40)) for n in least]
    x = rng.standard_normal((draw(st.integers(1, 3)), first, *sizes)).astype(np.float32)
    order = rng.permutation(channels) if draw(st.booleans()) else None
    return x, stages, order, steps


@given(problems())
def test_any_chain_matches_oracle(problem):
    x, stages, order, steps = problem
    found = conv_chain(x, ConvChain(stages, order), **steps)
    assert_close(found, oracle(x, stages, order, **steps), stages)


@pytest.mark.parametrize("name", ["monochromatic", "svd", "cp", "rows, columns"])
def test_wide_images_are_cut_along_columns(rng, name):
    """A few rows of this image take more than a worker's planes."""
    stages = chain_of(rng, name)
    x = rng.standard_normal((1, CHAINS[name][0][0], 9, 12_000)).astype(np.float32)
    steps = {"stride": (2, 2), "padding": (3, 3)}
    found = conv_chain(x, ConvChain(stages), **steps)
    assert_close(found, oracle(x, stages, **steps), stages)


@pytest.mark.parametrize("name", CHAINS)
def test_same_bits_for_any_number_of_threads(rng, name, n_threads):
    stages = chain_of(rng, name)
    x = rng.standard_normal((3, CHAINS[name][0][0], 61, 57)).astype(np.float32)
    chain = ConvChain(stages)
    alone = conv_chain(x, chain, padding=2, stride=2, n_threads=1)
    assert np.array_equal(conv_chain(x, chain, padding=2, stride=2, n_threads=n_threads), alone)


def test_an_image_has_the_same_bits_alone_and_in_a_batch(rng):
    """Blocks depend on the number of images; sums must not."""
    stages = chain_of(rng, "svd")
    x = rng.standard_normal((9, 12, 40, 29)).astype(np.float32)
    chain = ConvChain(stages)
    batch = conv_chain(x, chain, padding=2)
    for i in range(len(x)):
        assert np.array_equal(conv_chain(x[i : i + 1], chain, padding=2)[0], batch[i])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_read_as_float32(rng, dtype):
    stages = chain_of(rng, "svd")
    x = rng.standard_normal((2, 12, 20, 21)).astype(dtype)
    chain = ConvChain([(order, w.astype(dtype), groups) for order, w, groups in stages])
    same = ConvChain([(order, w.astype(dtype).astype(np.float32), g) for order, w, g in stages])
    expected = conv_chain(x.astype(np.float32), same, padding=1, stride=2)
    assert np.array_equal(conv_chain(x, chain, padding=1, stride=2), expected)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        lambda x: np.repeat(x, 2, 3)[..., ::2],
        lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
        lambda x: np.asfortranarray(x),
    ],
)
def test_layouts_give_the_same_bits(rng, layout):
    chain = ConvChain(chain_of(rng, "monochromatic"))
    x = rng.standard_normal((2, 3, 30, 41)).astype(np.float32)
    expected = conv_chain(x, chain, padding=3, stride=2)
    assert np.array_equal(conv_chain(layout(x), chain, padding=3, stride=2), expected)


def test_broadcast_images(rng):
    chain = ConvChain(chain_of(rng, "window"))
    x = np.broadcast_to(np.float32(2), (2, 4, 11, 12))
    assert np.array_equal(conv_chain(x, chain), conv_chain(x.copy(), chain))


@pytest.mark.parametrize("name", CHAINS)
def test_nan_reaches_only_the_windows_that_hold_it(rng, name):
    stages = [(order, np.abs(w) + 1, groups) for order, w, groups in chain_of(rng, name)]
    x = np.ones((1, CHAINS[name][0][0], 30, 37), np.float32)
    x[0, :, 13, 20] = np.nan
    found = conv_chain(x, ConvChain(stages), padding=2, stride=2)
    expected = oracle(x, stages, padding=(2, 2), stride=(2, 2))
    assert np.array_equal(np.isnan(found), np.isnan(expected))


def test_an_empty_batch_gives_an_empty_result(rng):
    chain = ConvChain(chain_of(rng, "svd"))
    assert conv_chain(np.ones((0, 12, 9, 9), np.float32), chain).shape == (0, 22, 5, 5)


def test_writes_nothing_beside_out(rng):
    for name in CHAINS:
        chain = ConvChain(chain_of(rng, name))
        x = rng.standard_normal((2, chain.channels, 19, 23)).astype(np.float32)
        expected = conv_chain(x, chain, padding=2)
        guarded = np.full(expected.size + 128, 7, np.float32)
        out = guarded[64:-64].reshape(expected.shape)
        assert conv_chain(x, chain, padding=2, out=out) is out
        assert np.array_equal(out, expected)
        assert np.all(guarded[:64] == 7)
        assert np.all(guarded[-64:] == 7)


def test_copies_and_pickles_multiply_alike(rng):
    stages = chain_of(rng, "cp")
    chain = ConvChain(stages, rng.permutation(18))
    x = rng.standard_normal((1, 8, 12, 12)).astype(np.float32)
    again = pickle.loads(pickle.dumps(chain))
    assert np.array_equal(conv_chain(x, again), conv_chain(x, chain))
    assert not again.stages[0].weight.flags.writeable
    assert repr(again) == "ConvChain(channels=8, filters=18, kernel=(5, 5), stages=3)"
    assert again.nbytes == chain.nbytes > sum(weight.nbytes for _, weight, _ in stages)


def test_later_changes_of_weights_do_not_reach_a_chain(rng):
    stages = chain_of(rng, "window")
    chain, x = ConvChain(stages), np.ones((1, 4, 8, 8), np.float32)
    before = conv_chain(x, chain)
    stages[0][1][:] = 0
    assert np.array_equal(conv_chain(x, chain), before)


def stage(filters=4, channels=2, rows=1, columns=1, groups=1, order=None):
    return order, np.ones((filters, channels, rows, columns), np.float32), groups


@pytest.mark.parametrize(
    ("stages", "order", "error", "message"),
    [
        ([], None, ValueError, "stages must hold at least one convolution, got none"),
        ("ab", None, TypeError, r"stages must be a sequence of \(order, weight, groups\), got str"),
        ([(None, 1)], None, TypeError, r"stages\[0\] must be \(order, weight, groups\), got"),
        ([(None, np.ones((2, 2), np.float32), 1)], None, ValueError, "must have 4 dimensions"),
        ([(None, np.ones((2, 2, 1, 1), int), 1)], None, TypeError, "weight of stages.0. must have"),
        ([stage(filters=0)], None, ValueError, "must not be empty, got shape .0, 2, 1, 1."),
        ([stage(groups=3)], None, ValueError, "must divide the 4 filters of its weight, got 3"),
        ([stage(groups=0)], None, ValueError, r"groups of stages\[0\] must be at least 1, got 0"),
        ([stage(order=[0, 0])], None, ValueError, "must be a permutation of the 2 channels"),
        ([stage(order=[0, 2])], None, ValueError, "must be a permutation of the 2 channels"),
        ([stage(order=[1.0, 0.0])], None, TypeError, "order of stages.0. must be integers"),
        ([stage()], [0, 1, 2], ValueError, "order must be a permutation of the 4 channels"),
        ([stage(), stage()], None, ValueError, r"stages\[1\] must take the 4 channels"),
        (
            [stage(rows=3), stage(channels=4, rows=2)],
            None,
            ValueError,
            r"one stage at most must have a window of several rows, got stages \[0, 1\]",
        ),
    ],
)
def test_refuses_chains(stages, order, error, message):
    with pytest.raises(error, match=message):
        ConvChain(stages, order)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"chain": 3}, TypeError, "chain must be a ConvChain, got int"),
        ({"x": np.ones((1, 2, 8), np.float32)}, ValueError, "x must have 4 dimensions"),
        ({"x": np.ones((1, 3, 8, 8), np.float32)}, ValueError, "x must have 2 channels"),
        ({"x": np.ones((1, 2, 8, 8), int)}, TypeError, "x must have dtype float16"),
        ({"x": np.ones((1, 2, 2, 8), np.float32)}, ValueError, "at least as large as the window"),
        ({"x": np.ones((1, 2, 8, 0), np.float32)}, ValueError, "at least as large as the window"),
        ({"stride": 0}, ValueError, "stride must be at least 1|stride must be in"),
        ({"stride": (1, 2, 3)}, ValueError, "stride must be an integer or a pair"),
        ({"stride": 1.5}, TypeError, "stride must be an integer"),
        ({"padding": -1}, ValueError, "padding must be in"),
        ({"padding": (0, -1)}, ValueError, r"padding\[1\] must be in"),
        ({"dilation": 9}, ValueError, "at least as large as the window"),
        ({"dilation": 2**20, "padding": 2**20}, ValueError, "dilation must be smaller"),
        ({"dilation": 2**20 + 1}, ValueError, r"dilation must be in \[1, 1048576\]"),
        ({"bias": np.ones(3, np.float32)}, ValueError, r"bias must have shape \(4,\), got \(3,\)"),
        ({"bias": np.ones((4, 1), np.float32)}, ValueError, "bias must have 1 dimensions"),
        ({"out": np.ones((1, 4, 6, 6))}, TypeError, "out must have dtype float32"),
        ({"out": np.ones((1, 4, 6, 5), np.float32)}, ValueError, "out must have shape"),
        ({"n_threads": 0}, ValueError, "n_threads must be in"),
    ],
)
def test_refuses_calls(changes, error, message):
    arguments = {
        "x": np.ones((1, 2, 8, 8), np.float32),
        "chain": ConvChain([stage(rows=3, columns=3)]),
    }
    with pytest.raises(error, match=message):
        conv_chain(**(arguments | changes))


def test_out_must_not_overlap_x():
    x = np.ones((1, 4, 8, 8), np.float32)
    with pytest.raises(ValueError, match="out must not overlap x"):
        conv_chain(x, ConvChain([stage(channels=4)]), out=x)


def test_several_python_threads_at_once(rng):
    chain = ConvChain(chain_of(rng, "svd"))
    x = rng.standard_normal((2, 12, 50, 50)).astype(np.float32)
    expected = conv_chain(x, chain, padding=2)
    wrong = []

    def work():
        for _ in range(5):
            if not np.array_equal(conv_chain(x, chain, padding=2, n_threads=2), expected):
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
