from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError
from fastfactor.methods import ConvBicluster, ConvCP, ConvMonochromatic, ConvSeparable, ConvSVD
from fastfactor.methods.convolution.clusters import assigned

KERNEL = (2, 2)  # of matrices (24, 32): 8 channels


class TestConvSVD(MethodContract):
    METHODS = (
        ConvSVD(ranks=(3, 5), kernel_size=KERNEL),
        ConvSVD(ranks=(2, 2), kernel_size=(1, 4), groups=2),
    )
    EXACT_BITS = False


class TestConvSeparable(MethodContract):
    METHODS = (
        ConvSeparable(rank=3, kernel_size=KERNEL),
        ConvSeparable(rank=2, kernel_size=(4, 2), groups=3),
    )
    EXACT_BITS = False


class TestConvCP(MethodContract):
    METHODS = (ConvCP(rank=4, kernel_size=KERNEL), ConvCP(rank=2, kernel_size=(4, 1), groups=2))
    EXACT_BITS = False


class TestConvMonochromatic(MethodContract):
    METHODS = (
        ConvMonochromatic(n_colors=4, kernel_size=KERNEL),
        ConvMonochromatic(n_colors=2, kernel_size=(4, 2), groups=2),
    )
    EXACT_BITS = False


class TestConvBicluster(MethodContract):
    METHODS = (
        ConvBicluster(ranks=(2, 3), kernel_size=KERNEL),
        ConvBicluster(ranks=2, inside="cp", n_clusters=(4, 2), kernel_size=KERNEL),
        ConvBicluster(ranks=(2, 2), n_clusters=(2, 3), clustering="flats", kernel_size=KERNEL),
        ConvBicluster(ranks=(1, 2), n_clusters=(2, 2), kernel_size=KERNEL, groups=2),
    )
    EXACT_BITS = False


ALL = (
    ConvSVD(ranks=(5, 7)),
    ConvSeparable(rank=6),
    ConvCP(rank=6),
    ConvMonochromatic(n_colors=4),
    ConvBicluster(ranks=(2, 3), n_clusters=(2, 3)),
    ConvBicluster(ranks=3, inside="cp", n_clusters=(3, 2)),
    ConvBicluster(ranks=(3, 2), n_clusters=(1, 4)),
    ConvBicluster(ranks=(3, 2), n_clusters=(2, 1), clustering="flats"),
)
kinds = pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)


def weight(rng, shape=(12, 6, 3, 5), dtype=np.float32):
    """With some structure, so that factors are not all alike."""
    out, inner = shape[0], int(np.prod(shape[1:]))
    W = rng.standard_normal((out, 4)) @ rng.standard_normal((4, inner))
    return (W + 0.3 * rng.standard_normal((out, inner))).astype(dtype).reshape(shape)


def convolved(x, W, stride, padding, dilation, groups):
    """The definition, one output at a time."""
    filters, channels, height, width = W.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], (height, width), stride, dilation, strict=True)
    ]
    y = np.zeros((len(x), filters, *sizes))
    for f in range(filters):
        first = f // (filters // groups) * channels
        for i, j in np.ndindex(*sizes):
            rows = i * stride[0] + dilation[0] * np.arange(height)
            columns = j * stride[1] + dilation[1] * np.arange(width)
            patch = x[:, first : first + channels][:, :, rows][:, :, :, columns]
            y[:, f, i, j] = np.einsum("ncxy,cxy->n", patch, W[f])
    return y


@kinds
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [((1, 1), (0, 0), (1, 1)), ((2, 1), (1, 2), (1, 1)), ((3, 2), (2, 0), (1, 2))],
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_convolutions_are_those_of_the_dense_weight(
    rng, method, stride, padding, dilation, groups, dtype, tolerance
):
    W = weight(rng, (24, 6, 3, 5), dtype)
    factors = dataclasses.replace(method, groups=groups).compress(W)
    dense = factors.to_dense().reshape(W.shape).astype(np.float64)
    given = {"stride": stride, "padding": padding, "dilation": dilation}
    for shape in [(2, 6 * groups, 11, 13), (1, 6 * groups, 9, 9), (0, 6 * groups, 9, 9)]:
        x = rng.standard_normal(shape)
        expected = convolved(x, dense, **given, groups=groups)
        scale = np.abs(expected).max(initial=1)
        y = factors.conv(x.astype(dtype), **given)
        assert (y.shape, y.dtype) == (expected.shape, dtype)
        np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * scale)
    x, out = np.ones((6 * groups, 9, 9), dtype), np.empty((24, 7, 5), dtype)
    assert factors.conv(x, out=out) is out
    np.testing.assert_array_equal(out, factors.conv(x[None])[0])


@kinds
def test_inputs_of_convolutions_are_checked(rng, method):
    factors = method.compress(weight(rng))
    x = np.zeros((1, 6, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"x must have 6 channels, got shape \(1, 5, 8, 8\)"):
        factors.conv(x[:, :5])
    with pytest.raises(ValueError, match="x must have 3 or 4 dimensions"):
        factors.conv(x[0, 0])
    with pytest.raises(ValueError, match="x must be at least as large as the"):
        factors.conv(x[:, :, :2])
    with pytest.raises(ValueError, match=r"stride must be in \[1, "):
        factors.conv(x, stride=0)
    for wide in (x, x.astype(np.float64)):  # nothing is allocated for it
        with pytest.raises(
            ValueError, match=r"padding must be in \[0, 1048576\], got 1099511627776"
        ):
            factors.conv(wide, padding=2**40)
    with pytest.raises(ValueError, match="padding must be an integer or two"):
        factors.conv(x, padding=(1, 2, 3))
    with pytest.raises(ValueError, match="out must have shape"):
        factors.conv(x, out=np.zeros((1, 12, 6, 3), np.float32))
    with pytest.raises(ValueError, match=r"size must be in \[1, "):
        factors.multiply_adds(0)


def monochromatic_counts(C, F, XY, D, NM):
    return 6 * C * NM + XY * F * NM // D**2, C * 6 + XY * F


def outer_products_counts(C, F, XY, D, NM):
    G, H, K = 48, 2, 8
    each = C // G + XY // D**2 + F // H // D**2
    return G * H * K * NM * each, G * H * K * (C // G + XY + F // H)


def svd_counts(C, F, XY, D, NM):
    G, H, K1, K2 = 2, 2, 19, 64
    each = K1 * C // G + K1 * K2 * XY // D**2 + K2 * F // H // D**2
    return G * H * NM * each, G * H * (K1 * C // G + K1 * K2 * XY + K2 * F // H)


@pytest.mark.parametrize(
    ("method", "shape", "stride", "counts", "gain"),
    [
        (ConvMonochromatic(n_colors=6), (96, 3, 7, 7), 2, monochromatic_counts, 2.95),
        # The paper prints K = 6 and K₂ = 24; its 5.2 and 3.9 times fewer operations need 8 and 64.
        (
            ConvBicluster(ranks=8, inside="cp", n_clusters=(48, 2)),
            (256, 96, 5, 5),
            1,
            outer_products_counts,
            5.16,
        ),
        (ConvBicluster(ranks=(19, 64)), (256, 96, 5, 5), 1, svd_counts, 3.89),
    ],
    ids=["monochromatic", "outer products", "svd"],
)
def test_counts_are_the_published_ones(rng, method, shape, stride, counts, gain):
    filters, channels, height, width = shape
    factors = method.compress(rng.standard_normal(shape).astype(np.float32))
    size = 32
    found = factors.multiply_adds(size, stride=stride, padding=height // 2)
    expected = counts(channels, filters, height * width, stride, size * size)
    assert (found, factors.n_parameters) == expected
    plain = filters * channels * height * width * (size // stride) ** 2
    assert plain / found == pytest.approx(gain, abs=0.005)


# --- what is found


def unfolded(T, axis):
    return np.moveaxis(T, axis, 0).reshape(T.shape[axis], -1)


def test_tensors_of_these_ranks_are_found(rng):
    core = rng.standard_normal((4, 3, 3, 5))
    W = np.einsum(
        "klxy,fk,cl->fcxy", core, rng.standard_normal((12, 4)), rng.standard_normal((6, 3))
    )
    M = W.reshape(12, -1)
    assert ConvSVD(ranks=(3, 4)).compress(W).error(M) < 1e-20
    assert ConvSVD(max_error=1e-12).compress(W).ranks == (3, 4)
    W = np.einsum("fky,kcx->fcxy", rng.standard_normal((12, 2, 5)), rng.standard_normal((2, 6, 3)))
    assert ConvSeparable(max_error=1e-12).compress(W).rank == 2


@pytest.mark.parametrize("seed", range(5))
def test_the_svd_loses_no_more_than_one_pass(seed):
    """As Denton et al. do it: an SVD along filters, then one of what is left along channels."""
    W = np.random.default_rng(seed).standard_normal((16, 12, 3, 3))
    left = np.linalg.svd(unfolded(W, 0), full_matrices=False)[0][:, :6]
    middle = np.tensordot(left.T, W, 1)
    right = np.linalg.svd(unfolded(middle, 1), full_matrices=False)[0][:, :4]
    once = np.einsum("fk,kcxy,cl,dl->fdxy", left, middle, right, right)
    lost = np.sum((W - once) ** 2) / np.sum(W**2)
    found = ConvSVD(ranks=(4, 6)).compress(W)
    assert found.error(W.reshape(16, -1)) <= lost * (1 + 1e-12)


def test_separable_ones_lose_the_least_there_is(rng):
    W = rng.standard_normal((8, 6, 3, 5))
    sides = W.transpose(1, 2, 0, 3).reshape(18, 40)
    values = np.linalg.svd(sides, compute_uv=False) ** 2
    found = ConvSeparable(rank=4).compress(W)
    assert found.error(W.reshape(8, -1)) == pytest.approx(values[4:].sum() / values.sum(), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_sums_of_outer_products_are_found(seed):
    rng = np.random.default_rng(seed)
    f, c, p = (rng.standard_normal((5, n)) for n in (12, 8, 9))
    W = np.einsum("kf,kc,kp->fcp", f, c, p).reshape(12, 8, 3, 3)
    assert ConvCP(rank=5).compress(W).error(W.reshape(12, -1)) < 1e-4


def test_outer_products_lose_less_with_each_one_more_and_never_give_nan(rng):
    W = rng.standard_normal((10, 6, 3, 3))
    errors = [ConvCP(rank=k).compress(W).error(W.reshape(10, -1)) for k in range(1, 8)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    opposite = np.stack([W[0], -W[0], W[1], -W[1]])  # means along filters are zero
    zeros = np.zeros((4, 6, 3, 3))
    few = zeros.copy()
    few[2, 3] = 1
    for given in (opposite, zeros, few):
        found = ConvCP(rank=7).compress(given).to_dense()
        assert np.isfinite(found).all()
        if given is not opposite:
            np.testing.assert_allclose(found, given.reshape(4, -1), atol=1e-6)


def test_colors_are_found_whatever_the_signs_of_their_filters(rng):
    colors = np.array([[1.0, 2.0, 3.0], [3.0, -1.0, 0.5], [-1.0, 1.0, 1.0]])
    labels = rng.permutation(np.repeat(np.arange(3), 8))
    signs = rng.choice([-1.0, 1.0], 24)
    W = np.einsum("f,fc,fxy->fcxy", signs, colors[labels], rng.standard_normal((24, 7, 7)))
    found = ConvMonochromatic(n_colors=3).compress(W)
    assert found.error(W.reshape(24, -1)) < 1e-12
    clusters = labels[found.filter_order].reshape(3, 8)
    assert all(len(set(cluster)) == 1 for cluster in clusters)


def test_assignments_are_the_cheapest_that_are_balanced(rng):
    costs = rng.standard_normal((6, 3))
    each = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
    least = min(sum(costs[i, k] for i, k in enumerate(labels)) for labels in each)
    labels = assigned(costs, None)
    assert np.bincount(labels).tolist() == [2, 2, 2]
    assert costs[np.arange(6), labels].sum() == pytest.approx(least)


@pytest.mark.parametrize("clustering", ["kmeans", "flats"])
@pytest.mark.parametrize("inside", ["svd", "cp"])
def test_blocks_that_were_shuffled_are_found(rng, clustering, inside):
    """Filters and channels of two kinds, in any order: each block of low rank."""
    blocks = np.zeros((12, 8, 3, 3))
    for i, j in np.ndindex(2, 2):
        f, c, p = rng.standard_normal(6), rng.standard_normal(4), rng.standard_normal((3, 3))
        f, c = f + 2, c + 2  # so that those of a cluster are alike
        blocks[6 * i : 6 * i + 6, 4 * j : 4 * j + 4] = np.einsum("f,c,xy->fcxy", f, c, p)
    W = blocks[rng.permutation(12)][:, rng.permutation(8)]
    ranks = (1, 1) if inside == "svd" else 1
    method = ConvBicluster(ranks=ranks, inside=inside, clustering=clustering)
    assert method.compress(W).error(W.reshape(12, -1)) < 1e-9


@kinds
@pytest.mark.parametrize("metric", ["importance", "input_covariance"])
def test_metrics_keep_the_structure_and_lose_less(rng, method, metric):
    """Dividing factors of the weighted tensor by the weights would leave as many numbers as W."""
    W = weight(rng)
    x = rng.standard_normal((500, 90)) @ (rng.standard_normal((90, 90)) * np.geomspace(0.1, 3, 90))
    given = {
        "importance": {"importance": rng.random(W.shape) ** 4 + 1e-3},
        "input_covariance": {"input_covariance": x.T @ x / 500},
    }[metric]
    plain, weighted = method.compress(W), method.compress(W, **given)
    assert weighted.n_parameters == plain.n_parameters
    matrix = {name: a.reshape(12, -1) if a.ndim == 4 else a for name, a in given.items()}
    errors = [factors.error(W.reshape(12, -1), **matrix) for factors in (plain, weighted)]
    assert errors[1] < 0.95 * errors[0]


def test_a_separable_importance_is_a_change_of_units(rng):
    """There the best of the scaled weight, scaled back, is the best."""
    W = weight(rng, dtype=np.float64)
    f, c, p = rng.random(12) + 0.1, rng.random(6) + 0.1, rng.random((3, 5)) + 0.1
    units = f[:, None, None, None] * c[:, None, None] * p
    scaled = ConvSVD(ranks=(3, 4)).compress(W * units)
    lost = scaled.error((W * units).reshape(12, -1))
    found = ConvSVD(ranks=(3, 4)).compress(W, importance=units**2)
    importance = (units**2).reshape(12, -1)
    assert found.error(W.reshape(12, -1), importance=importance) <= 1.05 * lost


# --- what is refused


def test_kernels_and_groups_must_fit(rng):
    W = weight(rng)
    with pytest.raises(ValueError, match=r"kernel_size must be that of W, \(3, 5\), got \(3, 3\)"):
        ConvSVD(ranks=(1, 1), kernel_size=(3, 3)).compress(W)
    with pytest.raises(ValueError, match="W must have 4 axes"):
        ConvSVD(ranks=(1, 1)).compress(W.reshape(12, -1))
    with pytest.raises(ValueError, match="kernel_size must divide the 90 columns of W, got 4 × 4"):
        ConvSVD(ranks=(1, 1), kernel_size=(4, 4)).compress(W.reshape(12, -1))
    with pytest.raises(ValueError, match="groups must divide the 12 filters of W, got 5"):
        ConvSVD(ranks=(1, 1), groups=5).compress(W)
    with pytest.raises(ValueError, match="kernel_size must be two integers, got 3"):
        ConvSVD(ranks=(1, 1), kernel_size=3)
    with pytest.raises(ValueError, match="n_colors must divide the 12 filters of a group, got 5"):
        ConvMonochromatic(n_colors=5).compress(W)
    with pytest.raises(ValueError, match="n_clusters must divide the 6 channels and 12 filters"):
        ConvBicluster(ranks=(1, 1), n_clusters=(4, 2)).compress(W)
    with pytest.raises(ValueError, match="W must not be empty"):
        ConvCP(rank=1).compress(W[:0])
    with pytest.raises(ValueError, match="importance must have the shape of W"):
        ConvCP(rank=1).compress(W, importance=np.ones((12, 6, 5, 3)))
    with pytest.raises(TypeError, match="ranks must be an integer"):
        ConvBicluster(ranks=(1, 1), inside="cp")
    with pytest.raises(ValueError, match="ranks must be two integers"):
        ConvBicluster(ranks=1)


@pytest.mark.parametrize("name", ["filter_order", "channel_order"])
def test_orders_of_files_are_checked(rng, name):
    factors = ConvBicluster(ranks=(1, 2), n_clusters=(2, 3), groups=2).compress(
        weight(rng, (12, 6, 3, 3))
    )
    tensors = factors.tensors()
    n = tensors[name].size
    for broken in (np.zeros(n), np.arange(n) + 1, np.arange(n)[::-1]):
        forged = tensors | {name: broken.astype(np.uint8)}
        with pytest.raises(CorruptDataError, match=name):
            type(factors).from_tensors(forged, factors.config(), factors.shape, factors.dtype)
