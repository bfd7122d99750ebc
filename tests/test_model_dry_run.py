"""What is said of each tensor before any work, and what comes of it."""

from __future__ import annotations

import pytest
from fastfactor import compress_file
from models import RECIPE, saved


@pytest.fixture
def model(tmp_path, rng):
    return saved(tmp_path, rng)


EVERY_METHOD = [
    {"method": "codebook", "n_bits": 3, "granularity": "row"},
    {"method": "codebook", "ratio": 6},
    {"method": "low_rank", "rank": 7},
    {"method": "low_rank", "ratio": 3},
    {"method": "prune", "sparsity": 0.8},
    {"method": "prune", "nm_sparsity": [1, 4]},
    {"method": "prune_codebook", "sparsity": 0.8},
    {"method": "simhash", "n_hashes": 65},
    {"method": "block_diagonal", "n_blocks": 4},
    {"method": "block_projection", "reduction": 2},
    {"method": "mixed_block", "rank": 3},
    {"method": "dictionary", "n_nonzero_coefs": 2},
    {"method": "entropy_coded", "bits_per_weight": 3},
    {"method": "conv_svd", "ranks": [5, 9]},
    {"method": "conv_svd", "ratio": 3},
    {"method": "conv_cp", "rank": 6},
    {"method": "conv_separable", "rank": 6},
    {"method": "conv_monochromatic", "n_colors": 4},
    {"method": "conv_bicluster", "ranks": [2, 3]},
    {"method": "conv_bicluster", "ratio": 4, "inside": "cp"},
    {"method": "keep", "dtype": "float16"},
]


@pytest.mark.parametrize("rule", EVERY_METHOD, ids=lambda rule: rule["method"])
def test_a_dry_run_says_what_will_be_and_does_nothing(model, tmp_path, rule):
    path, _ = model
    recipe = {"default": rule}
    dry = compress_file(path, tmp_path / "out.safetensors", recipe, dry_run=True)
    assert list(tmp_path.iterdir()) == [path]
    wet = compress_file(path, tmp_path / "out.safetensors", recipe)
    for planned, done in zip(dry.rows, wet.rows, strict=True):
        same_fields = ["name", "shape", "dtype", "bytes_before"]
        if not planned.at_most:  # else the file may hold the tensor as it is
            same_fields += ["method", "settings", "reason", "bytes_after"]
        for field in same_fields:
            assert getattr(planned, field) == getattr(done, field)
        assert done.bytes_after <= planned.bytes_after
    totals = dry.totals()
    assert totals["n_unknown"] == 0
    assert totals["bytes_after"] >= wet.totals()["bytes_after"]
    if not totals["at_most"]:
        assert totals["bytes_after"] == wet.totals()["bytes_after"]
    assert dry.file_bytes_after is None
    assert dry.ratio is None


def test_a_dry_run_says_which_sizes_it_does_not_know(model, tmp_path):
    path, _ = model
    recipe = {
        "default": {"method": "codebook", "max_error": 0.01},
        "names": {"conv": {"method": "codebook", "n_bits": 4}},
    }
    dry = compress_file(path, tmp_path / "out.safetensors", recipe, dry_run=True)
    rows = {row.name: row for row in dry.rows}
    assert rows["fc.float32"].bytes_after is None
    assert rows["conv"].bytes_after == 40 * 144 // 2 + 16 * 4
    totals = dry.totals()
    assert (totals["n_unknown"], totals["bytes_after"], totals["at_most"]) == (5, None, False)
    last = dry.table().to_text().splitlines()[-1]
    assert "no total before the run: sizes of 5 tensors depend on their values" in last


@pytest.mark.parametrize(
    "rule",
    [
        {"method": "codebook", "vector_dim": 7},
        {"method": "dictionary", "block_size": 7},
        {"method": "mixed_block", "block_shape": [7, 7]},
    ],
    ids=lambda rule: rule["method"],
)
@pytest.mark.parametrize("goal", [{"max_error": 0.1}, {"ratio": 2}], ids=repr)
def test_shapes_that_do_not_fit_are_said_whatever_is_asked_for(model, tmp_path, rule, goal):
    path, _ = model
    recipe = {"names": {"conv": {**rule, **goal}}}
    with pytest.raises(ValueError, match=r"tensor 'conv': .* must divide"):
        compress_file(path, tmp_path / "out.safetensors", recipe, dry_run=True)


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_be_is_said_before_any_work(model, tmp_path, dry_run):
    path, tensors = model
    target = tmp_path / "out.safetensors"
    recipe = {**RECIPE, "names": {"conv": {"method": "block_diagonal", "n_blocks": 41}}}
    seen = []
    with pytest.raises(ValueError, match="tensor 'conv': n_blocks must be at most 40"):
        compress_file(
            path, target, recipe, dry_run=dry_run, progress=lambda *a: seen.append(a), resume=True
        )
    assert (seen, list(tmp_path.iterdir())) == ([], [path])
    kept = {**recipe, "if_impossible": "keep"}
    report = compress_file(path, target, kept, dry_run=dry_run)
    row = next(row for row in report.rows if row.name == "conv")
    assert row.reason.startswith("impossible: n_blocks must be at most 40")
    assert (row.method, row.bytes_after) == ("keep", tensors["conv"].nbytes)
