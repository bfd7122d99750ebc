"""Short files under right checksums that stand for huge or empty matrices: work stays bounded."""

from __future__ import annotations

import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from fastfactor import CorruptDataError, PackedCodes, codebook_rows, store
from fastfactor.cli import app as cli
from fastfactor.methods import Factors
from fastfactor.methods.structured.gaussian import gaussian, gaussian_tile
from fastfactor.models.compare import compare_files
from fastfactor.models.compress import compress_file, decompress_file
from fastfactor.models.inspect import inspect_file

ROWS = 2**50
SEED = np.zeros(1, np.uint64)
BITS = {"gap_bits": 0, "n_entries": 0, "block_rows": 1, "block_columns": 1}
ZERO = np.zeros((2, 1), np.float32)
ALLOWED_BYTES, ALLOWED_SECONDS = 64 << 20, 10


def f32(*shape):
    return np.zeros(shape, np.float32)


def u8(*shape):
    return np.zeros(shape, np.uint8)


def entropy_coded(rows):
    config = {
        **{"out_features": rows, "in_features": 0, "block_rows": 1 << 16, "classes": 1},
        **{"class_shift": 0, "rotation_bits": 0, "uneven": 0},
    }
    n_blocks = -(-rows // (1 << 16))
    tensors = {
        "words": np.zeros(0, np.uint16),
        "lengths": np.zeros(n_blocks, np.uint16),
        "step": np.ones(1, np.float32),
        "table_lengths": np.ones(2, np.uint8),
        "table_logs": np.full(2, 15, np.uint8),
        "centers": np.zeros((2, 3), np.int8),
    }
    return tensors, config


# Matrices without columns: their factors need no byte for any number of rows.
WITHOUT_COLUMNS = {
    "low_rank": ({"B": f32(ROWS, 0), "C": f32(0, 0)}, {}),
    "block_diagonal": ({"values": f32(0)}, {"n_blocks": 1, "permuted": 0}),
    "mixed_block": ({"mixture": f32(ROWS, 0, 2), "blocks": f32(2, 1, 1)}, {}),
    "block_projection": ({"B": f32(1, 1, 1), "C": f32(ROWS, 0), "D": f32(1, 1, 1)}, {}),
    "random_projection": (
        {"C": f32(ROWS, 0), "seed": SEED},
        {"block_in": 1, "reduced_in": 1, "block_out": 1, "reduced_out": 1, "shared": 1},
    ),
    "simhash": (
        {"signs": u8(2**40, 0), "scale": f32(0), "seed": SEED},
        {"n_hashes": 2**40, "axis": 0, "length": ROWS},
    ),
    "prune": ({"values": f32(0), "positions": u8(0)}, BITS),
    "prune_codebook": (
        {"codes": u8(0), "codebook": ZERO, "positions": u8(0)},
        {"n_bits": 1, **BITS},
    ),
    "codebook": (
        {"codes": u8(ROWS, 0), "codebook": ZERO},
        {"n_bits": 1, "vector_dim": 1, "n_codebooks": 1, "group_size": 0},
    ),
    "dictionary": (
        {"dictionary": f32(1, 1), "values": f32(0), "indices": u8(0)},
        {"piece": 1, "count_bits": 0, "count": 0},
    ),
    "deep_compression": (
        {"codes": u8(0), "codebook": ZERO, "gaps": u8(0)},
        {"gap_bits": 5, "n_entries": 0, "n_weights": 0},
    ),
}


def two_sided(rows, columns):
    tensors = {"core": f32(0, 1, 1, 1), "channels": f32(0, columns), "filters": f32(rows, 0)}
    orders = {"filter_order": u8(1), "channel_order": u8(1)}
    return tensors | orders, {"groups": 1, "channel_clusters": 1}


# Convolutions without filters, channels or a window are refused, whatever is claimed of them.
CONVOLUTIONS = {
    "conv_svd": two_sided,
    "conv_cp": two_sided,
    "conv_bicluster_svd": two_sided,
    "conv_bicluster_cp": two_sided,
    "conv_separable": lambda rows, columns: (
        {"vertical": f32(0, columns, 1), "horizontal": f32(rows, 0, 1)},
        {"groups": 1},
    ),
    "conv_monochromatic": lambda rows, columns: (
        {"colors": f32(0, columns), "windows": f32(rows, 1, 0), "filter_order": u8(1)},
        {"groups": 1},
    ),
}
NARROW, LESS_NARROW = (2**28, 2), (2**24, 2)


def all_zero(kind, shape):
    """Factors of zeros: whatever the shape, a few bytes say it all."""
    rows, columns = shape
    block = {"gap_bits": 0, "n_entries": 0, "block_rows": rows, "block_columns": columns}
    tensors, config = {
        "low_rank": ({"B": f32(rows, 0), "C": f32(0, columns)}, {}),
        "prune": ({"values": f32(0), "positions": u8(1)}, block),
        "prune_codebook": (
            {"codes": u8(0), "codebook": ZERO, "positions": u8(1)},
            {"n_bits": 1, **block},
        ),
        "deep_compression": (
            {"codes": u8(0), "codebook": ZERO, "gaps": u8(0)},
            {"gap_bits": 5, "n_entries": 0, "n_weights": rows * columns},
        ),
        "dictionary": (
            {"dictionary": f32(1, 1), "values": f32(0), "indices": u8(0)},
            {"piece": 1, "count_bits": 0, "count": 0},
        ),
        "mixed_block": ({"mixture": f32(*shape, 0), "blocks": f32(0, 1, 1)}, {}),
        "simhash": (
            {"signs": u8(1, 1), "scale": f32(2), "seed": SEED},
            {"n_hashes": 1, "axis": 0, "length": rows},
        ),
    }[kind]
    return made(kind, tensors, config, shape)


ZEROS = ("low_rank", "prune", "prune_codebook", "deep_compression", "dictionary", "mixed_block")


@pytest.fixture
def bounded():
    """Fail if the test takes more time or memory than a short file and a short answer may."""
    tracemalloc.start()
    start = time.perf_counter()
    yield
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < ALLOWED_SECONDS
    assert peak < ALLOWED_BYTES


def made(kind, tensors, config, shape):
    return Factors.kinds[kind].from_tensors(tensors, config, shape, np.dtype(np.float32))


@pytest.fixture(params=[*WITHOUT_COLUMNS, "entropy_coded"])
def without_columns(request):
    if request.param == "entropy_coded":
        rows = 2**34
        return made(request.param, *entropy_coded(rows), (rows, 0))
    return made(request.param, *WITHOUT_COLUMNS[request.param], (ROWS, 0))


def test_every_kind_is_tried():
    ours = {kind for kind, each in Factors.kinds.items() if each.__module__.startswith("fastfac")}
    assert {*WITHOUT_COLUMNS, *CONVOLUTIONS, "entropy_coded"} == ours


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("shape", [(ROWS, 0), (0, ROWS), (ROWS, 1)])
def test_convolutions_have_weights(kind, shape, bounded):
    with pytest.raises(CorruptDataError, match="must fit a matrix of shape"):
        made(kind, *CONVOLUTIONS[kind](*shape), shape)


def test_nothing_loops_over_rows_without_columns(without_columns, bounded):
    rows = without_columns.shape[0]
    without_columns.verify()
    assert without_columns.rows([]).shape == (0, 0)
    assert without_columns.rows([[0, rows - 1]]).shape == (1, 2, 0)
    assert without_columns.linear(f32(0, 0)).shape == (0, rows)
    assert without_columns.to_dense().shape == (rows, 0)
    assert without_columns.error(f32(rows, 0)) == 0
    assert (f32(0, rows) @ without_columns).shape == (0, 0)
    with pytest.raises(IndexError):
        without_columns.rows([rows])


def test_files_of_rows_without_columns(without_columns, tmp_path, bounded):
    """They are refused by the limit, and with a larger one they are read at once."""
    path, target = tmp_path / "short.safetensors", tmp_path / "long.safetensors"
    store.save(path, {"w": without_columns})
    for call in (
        lambda **limit: inspect_file(path, verify=True, **limit),
        lambda **limit: decompress_file(path, target, **limit),
        lambda **limit: compare_files(path, path, **limit),
        lambda **limit: store.open_store(path, **limit).to_dense("w"),
    ):
        with pytest.raises(CorruptDataError, match="max_dense_nbytes must be at least"):
            call()
        call(max_dense_nbytes=2**60)
    with store.open_store(target) as opened:
        assert opened["w"].shape == without_columns.shape


@pytest.mark.parametrize("kind", [*ZEROS, "simhash"])
def test_a_row_of_many_takes_a_row(kind, bounded):
    factors = all_zero(kind, NARROW)
    assert factors.rows([0, NARROW[0] - 1]).tolist() == [[0, 0], [0, 0]]
    assert factors.linear(f32(0, 2)).shape == (0, NARROW[0])


@pytest.mark.parametrize("kind", ZEROS)
def test_a_large_matrix_of_zeros_is_rebuilt_when_asked_for(kind, tmp_path):
    path = tmp_path / "short.safetensors"
    store.save(path, {"narrow": all_zero(kind, NARROW), "w": all_zero(kind, LESS_NARROW)})
    tracemalloc.start()
    start = time.perf_counter()
    with store.open_store(path) as opened:
        dense = opened.to_dense("w")
        with pytest.raises(CorruptDataError, match=r"at least 2147483648 for .* 'narrow'"):
            opened["narrow"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dense.shape == LESS_NARROW
    assert not dense.any()
    assert peak < dense.nbytes + ALLOWED_BYTES
    assert time.perf_counter() - start < ALLOWED_SECONDS


def test_the_whole_file_counts_when_all_of_it_is_rebuilt(tmp_path):
    shape = (2**14, 2**14)  # each is at the limit of 1 GiB
    zeros = made("low_rank", {"B": f32(shape[0], 0), "C": f32(0, shape[1])}, {}, shape)
    path = tmp_path / "short.safetensors"
    store.save(path, {f"w{i}": zeros for i in range(9)})
    with store.open_store(path) as opened:
        assert opened["w0"].shape == shape
    with pytest.raises(CorruptDataError, match=f"must be at least {9 * 2**30} for the tensors of"):
        decompress_file(path, tmp_path / "long.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("command", ["inspect --verify", "decompress", "compare"])
def test_commands_take_the_limit(command, tmp_path, monkeypatch, capsys):
    path = tmp_path / "short.safetensors"
    store.save(path, {"w": made("low_rank", *WITHOUT_COLUMNS["low_rank"], (ROWS, 0))})
    paths = {"inspect": [path], "decompress": [path, tmp_path / "long"], "compare": [path, path]}
    name, *options = command.split()
    for limit, code in ((2**30, 1), (2**60, 0)):
        words = [name, *paths[name], *options, "--max-dense-nbytes", limit]
        monkeypatch.setattr("sys.argv", ["fastfactor", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert (left.value.code or 0) == code
    assert "max_dense_nbytes must be at least" in capsys.readouterr().err


def test_an_ordinary_file_is_below_the_limit(tmp_path):
    zeros = made("low_rank", {"B": f32(4096, 0), "C": f32(0, 4096)}, {}, (4096, 4096))
    path = tmp_path / "zeros.safetensors"
    store.save(path, {"w": zeros})
    with store.open_store(path) as opened:
        assert opened.max_dense_nbytes == 2**30 + 4096 * path.stat().st_size
        assert not opened.to_dense("w").any()
        with pytest.raises(TypeError, match="max_dense_nbytes must be an integer"):
            store.open_store(path, max_dense_nbytes=1.5)


def test_blocks_need_values():
    with pytest.raises(CorruptDataError, match="values"):
        made("block_diagonal", {"values": f32(1)}, {"n_blocks": 2**28, "permuted": 0}, (2**28,) * 2)


@pytest.mark.parametrize("shared", [0, 1])
def test_projections_that_are_drawn_need_a_matrix(shared):
    config = {"block_in": 2**28, "reduced_in": 2**27, "block_out": 1, "reduced_out": 1}
    tensors = {"C": f32(1, 2**27), "seed": SEED}
    with pytest.raises(CorruptDataError, match="projections must have at most"):
        made("random_projection", tensors, {**config, "shared": shared}, (1, 2**28))


def test_codebook_rows_without_columns(bounded):
    packed = PackedCodes(b"", 1, (2**40, 0))
    assert codebook_rows(packed, ZERO, None).shape == (2**40, 0)
    with pytest.raises(IndexError):
        codebook_rows(packed, ZERO, [2**40])


@pytest.mark.parametrize("shape", [(20000, 1), (3, 300), (8193, 129), (0, 5), (5, 0)])
def test_random_numbers_drawn_in_parts_are_the_same(shape):
    rows, columns = shape
    tiles = [gaussian_tile(7, 1, 0, rows, tile) for tile in range(-(-columns // 128))]
    expected = np.concatenate([f32(rows, 0), *tiles], axis=1)[:, :columns]
    np.testing.assert_array_equal(gaussian(7, 1, rows, columns), expected)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["w.npy", "archive/data.pkl"])
def test_archives_that_inflate_without_bounds_are_refused(tmp_path, monkeypatch, method, name):
    """Deflate makes a thousandth of zeros at best, other compressions as much less as one likes."""
    monkeypatch.setattr("fastfactor.files.stored.DENSE_NBYTES", 1 << 10)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, bytes(1 << 24))
    recipe = {"default": {"method": "keep"}}
    for call in (inspect_file, lambda p: compress_file(p, tmp_path / "o.safetensors", recipe)):
        with pytest.raises(CorruptDataError, match=r"for the \d+ that it takes in the archive"):
            call(path)
    np.savez_compressed(path, w=np.zeros(1 << 18))
    assert inspect_file(path).totals["n_tensors"] == 1
