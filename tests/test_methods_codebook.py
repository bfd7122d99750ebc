from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError, kmeans, kmeans1d
from fastfactor.methods import Codebook, CodebookFactors


class TestCodebook(MethodContract):
    METHODS = (
        Codebook(n_bits=4),
        Codebook(n_bits=7, codebook_dtype="bfloat16"),
        Codebook(n_bits=2, granularity="row"),
        Codebook(n_bits=3, granularity="row", group_size=12, codebook_dtype="bfloat16"),
        Codebook(n_bits=3, balanced=True),
        Codebook(n_bits=4, vector_dim=2, group_size=12, codebook_dtype="float16"),
        Codebook(n_bits=3, vector_dim=8, group_size=8),
        Codebook(n_bits=1, vector_dim=4, granularity="row", group_size=16),
    )


class TestSums(MethodContract):
    METHODS = (
        Codebook(n_bits=3, vector_dim=4, n_codebooks=2, group_size=8),
        Codebook(n_bits=1, n_codebooks=3),
    )
    LARGE = (48, 64)  # each step of a search fits all tables again
    EXACT_BITS = False


def dense(factors):
    """By its definition, from what is stored."""
    packed, codebook = factors.packed, factors.codebook.astype(np.float32)
    rows, columns = factors.shape
    d, size = packed.vector_dim, factors.group_size
    codes = packed.unpack().reshape(packed.n_codebooks, rows, columns // d)
    if packed.n_codebooks == 1:
        codebook = codebook[None]
    W = np.zeros(factors.shape, np.float32)
    for b, i, j in np.ndindex(codes.shape):
        table = codebook[b]
        by_row = table.ndim == 3 + (size > 0)
        table = table[i] if by_row else table
        table = table[j * d // size] if size else table
        W[i, j * d : (j + 1) * d] += table[codes[b, i, j]]
    return W


@pytest.mark.parametrize("n_bits", range(1, 9))
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("group_size", [None, 12])
@pytest.mark.parametrize(("vector_dim", "n_codebooks"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_codes_name_vectors_of_the_tables_they_share(
    rng, n_bits, granularity, group_size, vector_dim, n_codebooks
):
    W = rng.standard_normal((5, 32)).astype(np.float32)
    factors = Codebook(
        n_bits=n_bits,
        granularity=granularity,
        group_size=group_size,
        vector_dim=vector_dim,
        n_codebooks=n_codebooks,
    ).compress(W)
    np.testing.assert_allclose(factors.to_dense(), dense(factors), atol=1e-6)
    books = (n_codebooks,) if n_codebooks > 1 else ()
    rows = (5,) if granularity == "row" else ()
    groups = (3,) if group_size else ()  # of 12, 12 and 8 columns
    assert factors.codebook.shape == (*books, *rows, *groups, 2**n_bits, vector_dim)
    codes = 5 * n_codebooks * -(-32 // vector_dim * n_bits // 8)
    assert factors.nbytes == codes + factors.codebook.nbytes


@pytest.mark.parametrize("columns", [1, 7, 24])
def test_scalars_are_the_optimum(rng, columns):
    W = rng.standard_normal((9, columns)).astype(np.float32)
    for granularity, x in (("tensor", W.reshape(1, -1)), ("row", W)):
        factors = Codebook(n_bits=2, granularity=granularity).compress(W)
        assert np.sum((W - factors.to_dense()).astype(np.float64) ** 2) == pytest.approx(
            kmeans1d(x, 4).inertia.sum(), rel=1e-5, abs=1e-10
        )


def test_tables_of_half_width_are_chosen_among_their_values(rng):
    W = 1 + 0.02 * rng.standard_normal((4, 500)).astype(np.float32)
    best = kmeans1d(W.reshape(-1), 8, centroid_dtype="bfloat16").inertia
    factors = Codebook(n_bits=3, codebook_dtype="bfloat16").compress(W)
    assert factors.codebook.dtype == ml_dtypes.bfloat16
    assert factors.error(W) == pytest.approx(best / np.sum(W.astype(np.float64) ** 2), rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float16, np.float16),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_tables_have_the_dtype_of_the_matrix(rng, dtype, expected):
    W = rng.standard_normal((6, 16)).astype(dtype)
    for method in (Codebook(n_bits=2), Codebook(n_bits=2, vector_dim=4, n_codebooks=2)):
        assert method.compress(W).codebook.dtype == expected


def test_one_group_a_vector_is_product_quantization(rng):
    W = rng.standard_normal((200, 12)).astype(np.float32)
    factors = Codebook(n_bits=4, vector_dim=4, group_size=4, random_state=3).compress(W)
    best = kmeans(W.reshape(200, 3, 4).swapaxes(0, 1), 16, n_init=2, random_state=3)
    np.testing.assert_array_equal(factors.codebook, best.centroids)
    np.testing.assert_array_equal(factors.packed.unpack(), best.labels.T)


def test_more_starts_find_less_error(rng):
    W = rng.standard_normal((400, 12)).astype(np.float32)
    settings = {"n_bits": 4, "vector_dim": 4, "group_size": 4}
    errors = [Codebook(**settings, n_init=n).compress(W).error(W) for n in (1, 2, 8)]
    assert errors[0] > errors[2]
    assert errors[0] >= errors[1] >= errors[2]


def test_a_vector_is_coded_by_the_nearest_of_the_rounded_table(rng):
    W = (5 + 0.05 * rng.standard_normal((300, 8))).astype(np.float32)
    factors = Codebook(n_bits=4, vector_dim=4, codebook_dtype="bfloat16").compress(W)
    table = factors.codebook.astype(np.float32)
    gaps = ((W.reshape(-1, 1, 4) - table) ** 2).sum(axis=2)
    chosen = factors.packed.unpack().reshape(-1)
    np.testing.assert_allclose(gaps[np.arange(600), chosen], gaps.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("vector_dim", [1, 2])
def test_balanced_uses_every_vector_equally(rng, vector_dim):
    W = rng.standard_normal((10, 24)).astype(np.float32) ** 3
    codes = Codebook(n_bits=3, vector_dim=vector_dim, balanced=True).compress(W).packed.unpack()
    counts = np.bincount(codes.reshape(-1), minlength=8)
    assert counts.max() - counts.min() <= 1


def residual(W, n_codebooks, n_vectors):
    left, total = W.copy(), 0
    for _ in range(n_codebooks):
        found = kmeans(left, n_vectors, random_state=0)
        left = left - found.centroids[found.labels]
        total = float((left.astype(np.float64) ** 2).sum())
    return total / float((W.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("n_codebooks", [2, 4])
def test_sums_are_better_than_residual_and_product_quantizers(rng, n_codebooks):
    W = (rng.standard_normal((2000, 8)) @ rng.standard_normal((8, 8))).astype(np.float32)
    settings = {"n_bits": 4, "vector_dim": 8, "group_size": 8}
    sums = Codebook(**settings, n_codebooks=n_codebooks).compress(W).error(W)
    each = 8 // n_codebooks
    product = Codebook(n_bits=4, vector_dim=each, group_size=each).compress(W).error(W)
    assert sums < 0.95 * residual(W, n_codebooks, 16)
    assert sums < 0.95 * product


def test_more_vectors_than_are_refitted_at_once_still_gain(rng):
    W = rng.standard_normal((400, 8)).astype(np.float32)
    sums = Codebook(n_bits=1, vector_dim=8, n_codebooks=8)
    joint = sums.compress(W).error(W)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastfactor.methods.codebook.sums.JOINT_VECTORS", 6)
        in_turn = sums.compress(W).error(W)
    assert joint < residual(W, 8, 2)
    assert in_turn < residual(W, 8, 2)


def test_sums_of_large_and_small_numbers_stay_in_range(rng):
    W = rng.standard_normal((60, 8)).astype(np.float32)
    method = Codebook(n_bits=2, vector_dim=4, n_codebooks=2)
    expected = method.compress(W)
    for power in (-100, 80):
        factors = method.compress(np.ldexp(W, power))
        np.testing.assert_allclose(np.ldexp(factors.to_dense(), -power), expected.to_dense())


@pytest.mark.parametrize(
    ("settings", "gain"),
    [
        (Codebook(n_bits=3, vector_dim=2), 0.8),
        (Codebook(n_bits=4, vector_dim=4, group_size=8, codebook_dtype="bfloat16"), 0.8),
        (Codebook(n_bits=3, vector_dim=4, n_codebooks=2), 0.8),
        (Codebook(n_bits=4, vector_dim=2, balanced=True), 0.95),
    ],
    ids=repr,
)
def test_importance_of_each_coordinate_counts(rng, settings, gain):
    W = rng.standard_normal((100, 16)).astype(np.float32)
    importance = rng.random(W.shape) ** 6
    importance[:, ::4] = 0
    weighted = settings.compress(W, importance=importance).error(W, importance=importance)
    assert weighted < gain * settings.compress(W).error(W, importance=importance)


def test_weighted_vectors_have_weighted_means(rng):
    W = rng.standard_normal((40, 6)).astype(np.float32)
    importance = rng.random(W.shape)
    factors = Codebook(n_bits=2, vector_dim=3).compress(W, importance=importance)
    x, a = W.reshape(-1, 3).astype(np.float64), importance.reshape(-1, 3)
    codes, table = factors.packed.unpack().reshape(-1), factors.codebook
    gaps = (a[:, None] * (x[:, None] - table) ** 2).sum(axis=2)
    np.testing.assert_array_equal(codes, gaps.argmin(axis=1))
    for k in range(4):
        mine = codes == k
        mean = (a[mine] * x[mine]).sum(axis=0) / a[mine].sum(axis=0)
        np.testing.assert_allclose(table[k], mean, atol=0.05)  # it stops when little is gained


def test_rows_without_importance_are_coded_all_the_same(rng):
    W = rng.standard_normal((6, 32)).astype(np.float32)
    importance = np.ones(W.shape)
    importance[2] = 0
    for method in (
        Codebook(n_bits=4, granularity="row"),
        Codebook(n_bits=3, vector_dim=2, granularity="row"),
        Codebook(n_bits=3, vector_dim=2, granularity="row", n_codebooks=2),
    ):
        left = W[2] - method.compress(W, importance=importance).to_dense()[2]
        assert (left**2).sum() < 0.2 * (W[2] ** 2).sum()


def inputs_of(rng, columns):
    """Correlated, of different size."""
    mixed = rng.standard_normal((400, columns)) @ rng.standard_normal((columns, columns))
    x = mixed * np.geomspace(0.1, 3, columns)
    return x.T @ x / 400


@pytest.mark.parametrize(
    ("settings", "gain"),
    [
        (Codebook(n_bits=3), 0.4),
        (Codebook(n_bits=2, granularity="row"), 0.4),
        (Codebook(n_bits=2, granularity="row", group_size=12, codebook_dtype="bfloat16"), 0.4),
        (Codebook(n_bits=4, vector_dim=2, group_size=8), 0.4),
        (Codebook(n_bits=2, vector_dim=2, granularity="row"), 0.4),
        (Codebook(n_bits=3, vector_dim=4, n_codebooks=2), 0.6),
        (Codebook(n_bits=3, balanced=True), 0.99),
    ],
    ids=repr,
)
def test_the_error_of_outputs_is_far_less_than_of_plain_codes(rng, settings, gain):
    W = rng.standard_normal((60, 32)).astype(np.float32)
    covariance = inputs_of(rng, 32)
    improved = settings.compress(W, input_covariance=covariance).error(
        W, input_covariance=covariance
    )
    assert improved < gain * settings.compress(W).error(W, input_covariance=covariance)


def test_no_single_code_could_give_less_error_of_outputs(rng):
    W = rng.standard_normal((6, 12)).astype(np.float32)
    covariance = inputs_of(rng, 12)
    factors = Codebook(n_bits=2).compress(W, input_covariance=covariance)
    codes, table = factors.packed.unpack(), factors.codebook[:, 0].astype(np.float64)

    def cost(chosen):
        E = table[chosen] - W
        return np.trace(E @ covariance @ E.T)

    last = cost(codes)
    gains = 0
    for i, j in np.ndindex(codes.shape):
        for k in range(4):
            other = codes.copy()
            other[i, j] = k
            gains += cost(other) < last * (1 - 1e-2)
    assert gains == 0


def test_balanced_stays_so_under_every_metric(rng):
    W = rng.standard_normal((8, 16)).astype(np.float32)
    method = Codebook(n_bits=2, vector_dim=2, balanced=True)
    for given in ({"importance": rng.random(W.shape)}, {"input_covariance": inputs_of(rng, 16)}):
        codes = method.compress(W, **given).packed.unpack()
        assert (np.bincount(codes.reshape(-1)) == 16).all()


def test_inputs_that_never_came_are_free(rng):
    W = rng.standard_normal((10, 16)).astype(np.float32)
    covariance = inputs_of(rng, 16)
    covariance[3], covariance[:, 3] = 0, 0
    W[:, 3] = 1000 * np.arange(10)
    factors = Codebook(n_bits=4).compress(W, input_covariance=covariance)
    assert factors.error(W, input_covariance=covariance) < 0.01


def test_the_random_state_is_a_setting(rng):
    W = rng.standard_normal((300, 16)).astype(np.float32)
    method = Codebook(n_bits=4, vector_dim=4)
    first = method.compress(W).to_dense()
    np.testing.assert_array_equal(first, method.compress(W).to_dense())
    other = Codebook(n_bits=4, vector_dim=4, random_state=1).compress(W).to_dense()
    assert (first != other).any()


def test_float64_input_is_multiplied_in_float64(rng):
    W = rng.standard_normal((300, 16)).astype(np.float32)
    factors = Codebook(n_bits=4).compress(W)
    x = rng.standard_normal((3, 16))
    product = factors.linear(x)
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, x @ factors.to_dense().T.astype(np.float64), rtol=1e-12)
    out = np.empty((3, 300))
    assert factors.linear(x, out=out) is out


@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_empty_matrices_stay_empty(shape, granularity):
    factors = Codebook(n_bits=2, vector_dim=2, granularity=granularity).compress(
        np.zeros(shape, np.float32)
    )
    assert factors.to_dense().shape == shape
    with pytest.raises(ValueError, match="W must not be empty"):
        Codebook(ratio=2.0, vector_dim=2, granularity=granularity).compress(
            np.zeros(shape, np.float32)
        )


def test_ratio_is_met_with_the_most_bits_that_fit(rng):
    W = rng.standard_normal((64, 64)).astype(np.float32)
    factors = Codebook(ratio=6.0).compress(W)
    assert factors.packed.n_bits == 5
    assert factors.nbytes * 6 <= W.nbytes < 6 * Codebook(n_bits=6).compress(W).nbytes


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"n_bits must be in \[1, 8\], got 9"):
        Codebook(n_bits=9)
    with pytest.raises(ValueError, match="group_size must be a multiple of vector_dim, 4, got 6"):
        Codebook(n_bits=4, vector_dim=4, group_size=6)
    with pytest.raises(ValueError, match="granularity must be one of"):
        Codebook(n_bits=4, granularity="matrix")
    with pytest.raises(ValueError, match="balanced must be False"):
        Codebook(n_bits=4, n_codebooks=2, balanced=True)
    with pytest.raises(TypeError, match="balanced must be True or False"):
        Codebook(n_bits=4, balanced=1)
    with pytest.raises(ValueError, match="codebook_dtype must be one of"):
        Codebook(n_bits=4, codebook_dtype="float64")
    with pytest.raises(ValueError, match="n_codebooks must be in"):
        Codebook(n_bits=4, n_codebooks=0)
    with pytest.raises(ValueError, match="n_init must be"):
        Codebook(n_bits=4, n_init=0)
    with pytest.raises(TypeError, match="random_state must be"):
        Codebook(n_bits=4, random_state="x")


def test_what_does_not_go_together_is_said(rng):
    W = rng.standard_normal((8, 9)).astype(np.float32)
    with pytest.raises(ValueError, match="vector_dim must divide the columns of W, 9, got 2"):
        Codebook(n_bits=4, vector_dim=2).compress(W)
    with pytest.raises(ValueError, match="W must be within ±65504 for tables of float16"):
        Codebook(n_bits=1, vector_dim=3, codebook_dtype="float16").compress(W * 1e30)


def test_stored_codes_and_settings_must_agree(rng):
    factors = Codebook(n_bits=3).compress(rng.standard_normal((4, 6)).astype(np.float32))
    tensors, config = factors.tensors(), factors.config()

    def made(codes=tensors["codes"], **changes):
        given = {**tensors, "codes": codes}
        return CodebookFactors.from_tensors(given, config | changes, (4, 6), factors.dtype)

    np.testing.assert_array_equal(made().to_dense(), factors.to_dense())
    after_the_last = tensors["codes"].copy()
    after_the_last[1, -1] |= 0x80
    with pytest.raises(CorruptDataError, match="zeros after the last code"):
        made(after_the_last)
    for changes in ({"n_bits": 9}, {"vector_dim": 4}, {"vector_dim": 2, "group_size": 3}):
        with pytest.raises(CorruptDataError, match=next(iter(changes))):
            made(**changes)


@pytest.mark.parametrize("seed", [0, 37, 44])  # the last two were worse
@pytest.mark.parametrize("vector_dim", [1, 2])
def test_balanced_is_no_worse_for_an_importance(seed, vector_dim):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((2, 8)).astype(np.float16)
    importance = rng.random(W.shape) * (rng.random(W.shape) < 0.6) + 1e-6
    method = Codebook(n_bits=2, vector_dim=vector_dim, balanced=True)
    plain = method.compress(W).error(W, importance=importance)
    assert method.compress(W, importance=importance).error(W, importance=importance) <= plain


@pytest.mark.parametrize("vector_dim", [1, 2])
def test_balanced_takes_an_importance_of_any_float_and_size(rng, vector_dim):
    W = rng.standard_normal((6, 8)).astype(np.float32)
    method = Codebook(n_bits=2, vector_dim=vector_dim, balanced=True)
    exact = 2.0 ** rng.integers(-3, 4, W.shape)
    expected = method.compress(W, importance=exact).to_dense()
    for importance in (exact.astype(ml_dtypes.bfloat16), exact * 2.0**1019):
        result = method.compress(W, importance=importance).to_dense()
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", [(4, 0), (0, 0)])
def test_empty_rows_of_vectors_can_be_read_again(shape):
    W = np.zeros(shape, np.float32)
    factors = Codebook(n_bits=2, vector_dim=2).compress(W)
    tensors, config = factors.tensors(), factors.config()
    again = CodebookFactors.from_tensors(tensors, config, shape, W.dtype)
    np.testing.assert_array_equal(again.to_dense(), W)
    with pytest.raises(CorruptDataError, match="codebook"):
        CodebookFactors.from_tensors(tensors, config | {"vector_dim": 4}, shape, W.dtype)
