from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from contract import MethodContract
from fastfactor import CorruptDataError, nm_sparsity_mask, prune_mask
from fastfactor.methods import Prune, PruneCodebook, PruneFactors
from fastfactor.methods.forward import NUMPY
from fastfactor.methods.pruning.kept_places import MAX_GAP_BITS, KeptPlaces


class TestPrune(MethodContract):
    METHODS = (
        Prune(sparsity=0.5),
        Prune(sparsity=0.95),
        Prune(sparsity=0.75, scope="row"),
        Prune(sparsity=0.6, block_shape=(4, 5)),
        Prune(sparsity=0.5, block_shape=(1, 8), pool="mean"),
    )


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.9, 0.999, 1])
@pytest.mark.parametrize(
    "competing",
    [{}, {"scope": "row"}, {"block_shape": (3, 4)}, {"block_shape": (3, 4), "pool": "mean"}],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_what_is_kept_is_the_weight_itself(rng, sparsity, competing, dtype):
    W = rng.standard_normal((20, 50)).astype(dtype)
    factors = Prune(sparsity=sparsity, **competing).compress(W)
    mask = prune_mask(W, sparsity, **competing)
    assert factors.values.dtype == dtype
    np.testing.assert_array_equal(factors.to_dense(), np.where(mask, W, np.zeros((), dtype)))
    x = rng.standard_normal((3, 50)).astype(np.float32)
    expected = x @ factors.to_dense().astype(np.float32).T
    np.testing.assert_allclose(factors.linear(x), expected, atol=1e-4)
    np.testing.assert_allclose(
        factors.forward(NUMPY, factors.tensors(), x).astype(np.float32), expected, atol=1e-4
    )


def test_what_is_stored_is_near_the_entropy_of_the_mask(rng):
    for share in (0.5, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-4):
        mask = rng.random((1000, 1000)) < share
        p = mask.mean()
        entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * mask.size / 8
        stored = KeptPlaces.from_mask(mask).positions.nbytes
        assert stored <= mask.size / 8
        assert stored <= 1.4 * entropy + 8


@pytest.mark.parametrize("gap_bits", range(MAX_GAP_BITS + 1))
def test_places_come_back_from_every_code(rng, gap_bits):
    spacing = 3 if gap_bits == 0 else 2**gap_bits  # for which so many bits are about the best
    size = 40 * spacing + 7
    places = np.unique(rng.integers(0, size, max(size // spacing, 1)))
    mask = np.zeros((1, size), np.bool_)
    mask[0, places] = True
    kept = KeptPlaces.from_mask(mask)
    np.testing.assert_array_equal(kept.places(), places)
    assert kept.n_kept() == len(places)
    again = KeptPlaces.from_tensors(kept.tensors(), kept.config(), (1, size))
    np.testing.assert_array_equal(again.places(), places)


def test_every_width_of_gap_is_the_best_for_some(rng):
    chosen = set()
    for spacing in 2 ** np.arange(1, 18):
        mask = np.zeros((1, 60 * spacing), np.bool_)
        mask[0, ::spacing] = True
        chosen.add(KeptPlaces.from_mask(mask).gap_bits)
    assert chosen == {0, *range(3, MAX_GAP_BITS + 1)}
    mask = rng.random((30, 100)) < 0.28
    assert KeptPlaces.from_mask(mask).gap_bits in (0, 2)


def test_the_bytes_of_gaps_are_those_that_were_written_before_other_widths_were():
    gaps = {"gap_bits": 4, "n_entries": 3, "block_rows": 1, "block_columns": 1}
    of_a_byte = {"positions": np.array([0x2F, 0x04], np.uint8)}  # 15 zeros and 2 more, 4 to the end
    kept = KeptPlaces.from_tensors(of_a_byte, gaps, (2, 11))
    assert kept.places().tolist() == [17]
    wider = {"positions": np.array([0x23, 0xFF, 0x00, 0xF1, 0x04], np.uint8)}  # low bytes first
    config = {**gaps, "gap_bits": 12}
    kept = KeptPlaces.from_tensors(wider, config, (1, 0x123 + 1 + 4095 + 0x400))
    assert kept.places().tolist() == [0x123]


@pytest.mark.parametrize("at", [[], [0], [99_999], [0, 99_999], [65_535], [65_536]])
def test_few_places_at_the_ends(at):
    mask = np.zeros((10, 10_000), np.bool_)
    mask.reshape(-1)[at] = True
    kept = KeptPlaces.from_mask(mask)
    np.testing.assert_array_equal(kept.places(), at)
    assert kept.positions.nbytes < 30


@pytest.mark.parametrize("block", [(1, 1), (2, 3), (4, 4), (7, 1), (30, 40)])
def test_blocks_take_a_bit_each_at_most(rng, block):
    W = rng.standard_normal((30, 40)).astype(np.float32)
    factors = Prune(sparsity=0.5, block_shape=block).compress(W)
    n_blocks = -(-30 // block[0]) * -(-40 // block[1])
    assert factors.kept.positions.nbytes <= -(-n_blocks // 8)
    mask = np.zeros(1200, np.bool_)
    mask[factors.kept.places()] = True
    assert factors.kept.n_kept() == mask.sum() == factors.values.size
    for i in range(0, 30, block[0]):
        for j in range(0, 40, block[1]):
            part = mask.reshape(30, 40)[i : i + block[0], j : j + block[1]]
            assert part.all() or not part.any()


def test_blocks_of_most_energy_give_the_least_error(rng):
    W = (rng.standard_normal((32, 32)) ** 3).astype(np.float32)
    energy = np.sort((W.reshape(8, 4, 8, 4) ** 2).sum(axis=(1, 3)).reshape(-1))
    best = energy[:32].sum() / energy.sum()
    errors = {
        pool: Prune(sparsity=0.5, block_shape=(4, 4), pool=pool).compress(W).error(W)
        for pool in ("square", "max", "mean")
    }
    assert errors["square"] == pytest.approx(best, rel=1e-5)
    assert errors["square"] < min(errors["max"], errors["mean"])


def test_std_multiple_times_the_deviation_is_the_threshold(rng):
    W = (rng.standard_normal((30, 40)) * np.geomspace(0.1, 10, 30)[:, None]).astype(np.float32)
    kept = np.abs(W) >= 1.5 * W.astype(np.float64).std()
    np.testing.assert_array_equal(Prune(std_multiple=1.5).compress(W).to_dense() != 0, kept)
    by_row = np.abs(W) >= 1.5 * W.astype(np.float64).std(axis=1, keepdims=True)
    result = Prune(std_multiple=1.5, scope="row").compress(W).to_dense()
    np.testing.assert_array_equal(result != 0, by_row)
    importance = rng.random(W.shape)
    scores = np.sqrt(importance) * W
    weighted = Prune(std_multiple=1.5).compress(W, importance=importance).to_dense()
    np.testing.assert_array_equal(weighted != 0, np.abs(scores) >= 1.5 * scores.std())


@pytest.mark.parametrize("nm_sparsity", [(2, 4), (1, 5), [4, 8]])
def test_n_of_every_m_are_kept(rng, nm_sparsity):
    W = rng.standard_normal((9, 40)).astype(np.float32)
    factors = Prune(nm_sparsity=nm_sparsity).compress(W)
    np.testing.assert_array_equal(factors.to_dense() != 0, nm_sparsity_mask(W, *nm_sparsity))
    importance = rng.random(W.shape).astype(np.float32)
    weighted = Prune(nm_sparsity=nm_sparsity).compress(W, importance=importance).to_dense() != 0
    np.testing.assert_array_equal(weighted, nm_sparsity_mask(np.sqrt(importance) * W, *nm_sparsity))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_least_importance_times_square_goes_first(rng, dtype):
    W = rng.standard_normal((25, 30)).astype(dtype)
    importance = (rng.random(W.shape) ** 4 * 1e-9).astype(np.float32)
    cost = np.sort((importance * W.astype(np.float64) ** 2).reshape(-1))
    factors = Prune(sparsity=0.6).compress(W, importance=importance)
    best = cost[:450].sum() / cost.sum()
    assert factors.error(W, importance=importance) == pytest.approx(best, rel=1e-4)


def test_the_least_size_for_an_error_and_the_least_error_for_a_size(rng):
    W = rng.standard_normal((40, 50)).astype(np.float32)
    energy = np.sort(W.astype(np.float64).reshape(-1) ** 2)
    dropped = int(np.sum(np.cumsum(energy) <= 0.05 * energy.sum()))
    assert Prune(max_error=0.05).compress(W).values.size == 2000 - dropped
    factors = Prune(ratio=4).compress(W)
    assert factors.nbytes <= W.nbytes / 4 < factors.nbytes + 8
    blocks = Prune(max_error=0.3, block_shape=(8, 8)).compress(W)
    assert blocks.error(W) <= 0.3


@pytest.mark.parametrize(
    "competing", [{}, {"scope": "row"}, *({"block_shape": b} for b in ((3, 5), (1, 1), (50, 50)))]
)
@pytest.mark.parametrize("pool", ["square", "max", "mean"])
@pytest.mark.parametrize("weighed", [False, True])
def test_one_fewer_would_lose_too_much(rng, competing, pool, weighed):
    W = (rng.standard_normal((20, 31)) ** 3).astype(np.float16)
    importance = rng.random(W.shape).astype(np.float32) if weighed else None
    by_row = "scope" in competing
    height, width = competing.get("block_shape", (1, 1))
    n = 31 if by_row else -(-20 // height) * -(-31 // width)
    for max_error in (1e-9, 0.02, 0.3, 0.9, 2.0):
        asked = Prune(max_error=max_error, **competing, pool=pool)
        found = asked.compress(W, importance=importance)
        assert found.error(W, importance=importance) <= max_error
        kept = len(found.kept.places()) // 20 if by_row else len(found.kept._blocks())
        assert kept >= 1
        if kept > 1:
            fewer = Prune(sparsity=1 - (kept - 1) / n, **competing, pool=pool)
            factors = fewer.compress(W, importance=importance)
            assert factors.values.size < found.values.size
            assert factors.error(W, importance=importance) > max_error


@pytest.mark.parametrize("competing", [{}, {"scope": "row"}, {"block_shape": (2, 2)}])
def test_ties_and_zeros_keep_their_error(competing):
    for W in (np.ones((6, 8), np.float32), np.zeros((6, 8), np.float32)):
        factors = Prune(max_error=0.25, **competing).compress(W)
        assert factors.error(W) <= 0.25
        if W.any():
            assert factors.values.size == 36
    with pytest.raises(ValueError, match="W must not be empty"):
        Prune(max_error=0.1, **competing).compress(np.zeros((0, 4), np.float32))


@pytest.mark.parametrize("kind", [Prune, PruneCodebook])
@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.9},
        {"sparsity": 0.5, "scope": "row"},
        {"sparsity": 0.7, "block_shape": (3, 5)},
        {"sparsity": 1.0},
        {"sparsity": 0.0},
        {"nm_sparsity": (2, 4)},
    ],
    ids=repr,
)
def test_planned_sizes_are_near(rng, kind, settings):
    W = rng.standard_normal((70, 104)).astype(np.float32)
    method = kind(**settings)
    planned, factors = method.planned_size(W.shape, W.dtype), method.compress(W)
    assert not planned.exact
    assert factors.nbytes <= planned.nbytes <= 1.2 * factors.nbytes + 8


def test_sizes_that_are_not_known_and_shapes_that_do_not_fit():
    assert Prune(std_multiple=1.0).planned_size((8, 8), np.float32) is None
    assert PruneCodebook(std_multiple=1.0).planned_size((8, 8), np.float32) is None
    with pytest.raises(ValueError, match="multiple of 4"):
        Prune(nm_sparsity=(2, 4)).planned_size((3, 6), np.float32)
    assert Prune(sparsity=0.5).planned_size((0, 6), np.float32).nbytes == 0


def test_wide_matrices_are_multiplied_in_float64(rng):
    W = rng.standard_normal((7, 9))
    factors = Prune(sparsity=0.5).compress(W)
    x = rng.standard_normal((2, 9))
    np.testing.assert_allclose(factors.linear(x), x @ factors.to_dense().T, rtol=1e-12)
    assert factors.linear(x.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)])
@pytest.mark.parametrize("settings", [{}, {"scope": "row"}, {"block_shape": (2, 2)}], ids=repr)
def test_empty_matrices_stay_empty(shape, settings):
    W = np.zeros(shape, np.float32)
    factors = Prune(sparsity=0.5, **settings).compress(W)
    assert factors.to_dense().shape == shape
    assert factors.nbytes == 0
    assert factors.linear(np.zeros((2, shape[1]), np.float32)).shape == (2, shape[0])
    with pytest.raises(ValueError, match="W must not be empty"):
        Prune(ratio=2, **settings).compress(W)


def test_settings_are_checked():
    for given, message in (
        ({"sparsity": 1.5}, r"sparsity must be in \[0, 1\], got 1.5"),
        (
            {"sparsity": 0.5, "std_multiple": 1.0},
            "one of .* must be given to Prune, got sparsity and",
        ),
        (
            {},
            "one of sparsity, std_multiple, nm_sparsity, ratio, max_error must be given to Prune, "
            "got none",
        ),
        ({"std_multiple": -1}, "std_multiple must be zero or more"),
        (
            {"std_multiple": 1, "block_shape": (2, 2)},
            "block_shape must be None where std_multiple is given",
        ),
        (
            {"nm_sparsity": (2, 4), "block_shape": (2, 2)},
            "block_shape must be None where nm_sparsity is given",
        ),
        (
            {"sparsity": 0.5, "scope": "row", "block_shape": (2, 2)},
            "scope must be 'global' where block_shape is given",
        ),
        ({"nm_sparsity": (2, 4), "scope": "row"}, "scope must be 'global' where nm_sparsity"),
        ({"nm_sparsity": (5, 4)}, r"nm_sparsity\[0\] must be in \[1, 4\], got 5"),
        ({"sparsity": 0.5, "scope": "column"}, "scope must be one of"),
        ({"sparsity": 0.5, "block_shape": (0, 2)}, r"block_shape\[0\] must be at least 1"),
        ({"sparsity": 0.5, "pool": "min"}, "pool must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Prune(**given)
    with pytest.raises(TypeError, match="nm_sparsity must be a pair of integers"):
        Prune(nm_sparsity=4)
    with pytest.raises(TypeError, match="block_shape must be a pair of integers, got 3"):
        Prune(sparsity=0.5, block_shape=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        Prune(nm_sparsity=(2, 4)).compress(np.ones((3, 6), np.float32))


@pytest.mark.parametrize("share", [0.5, 0.05, 0.003])
def test_damaged_positions_are_refused_or_other_places(rng, share):
    W = np.where(rng.random((20, 1000)) < share, 1, 0).astype(np.float32)
    factors = Prune(sparsity=1 - (W != 0).mean()).compress(W)
    tensors, config = factors.tensors(), factors.config()
    refused = 0
    for _ in range(200):
        positions = tensors["positions"].copy()
        positions[rng.integers(positions.size)] ^= np.uint8(1 << rng.integers(8))
        try:
            other = PruneFactors.from_tensors(
                {**tensors, "positions": positions}, config, W.shape, W.dtype
            )
        except CorruptDataError:
            refused += 1
            continue
        assert other.to_dense().sum() == factors.values.size
    assert refused > 150 if share == 0.5 else refused > 100


def test_sizes_that_lie_are_refused_before_they_take_memory():
    W = np.ones((8, 8), np.float32)
    factors = Prune(sparsity=0, block_shape=(8, 8)).compress(W)
    vast = (10**6, 10**6)
    config = factors.config() | {"block_rows": 10**6, "block_columns": 10**6}
    with pytest.raises(CorruptDataError, match="values"):
        PruneFactors.from_tensors(factors.tensors(), config, vast, W.dtype)


@pytest.mark.parametrize("block_shape", [(9, 2), (2, 64), (100, 100)])
@pytest.mark.parametrize("shape", [(6, 10), (0, 4), (4, 0)])
def test_blocks_larger_than_the_matrix_can_be_read_again(rng, block_shape, shape):
    W = rng.standard_normal(shape).astype(np.float32)
    factors = Prune(sparsity=0.5, block_shape=block_shape).compress(W)
    again = PruneFactors.from_tensors(factors.tensors(), factors.config(), shape, W.dtype)
    mask = prune_mask(W, 0.5, block_shape=block_shape)
    np.testing.assert_array_equal(again.to_dense(), np.where(mask, W, 0))
