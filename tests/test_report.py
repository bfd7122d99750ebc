"""Reports: totals, the three formats, and the figures that are drawn from them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from fastfactor import compress_file
from fastfactor.figures import data as figure_data
from fastfactor.figures.draw import save_figures
from fastfactor.methods import Codebook, LowRank
from fastfactor.models.report import Report, Table, TensorRow
from safetensors.numpy import save_file

ROWS = (
    TensorRow("fc.weight", (8, 4), "float32", "codebook", {"n_bits": 2}, "", 128, 24, 0.0123, 0.25),
    TensorRow(
        "conv", (2, 4, 1, 2), "float16", "prune", {"nm_sparsity": (2, 4)}, "", 32, 20, 0.5, None
    ),
    TensorRow("bias", (8,), "float32", "keep", {}, "not a matrix", 32, 32, None, 0.0),
    TensorRow("empty", (0, 3), "float32", "keep", {}, "a side of 0", 0, 0, None, 0.0),
)
REPORT = Report("compress", "in.st", "out.st", ROWS, 400, 160, 1.5, False)


def test_totals():
    totals = REPORT.totals()
    assert totals["n_tensors"] == 4
    assert totals["n_compressed"] == 2
    assert (totals["bytes_before"], totals["bytes_after"]) == (192, 76)
    assert totals["bits_per_weight"] == 8 * 76 / (32 + 16 + 8)
    assert totals["ratio"] == REPORT.ratio == 2.5
    assert [row.bits_per_weight for row in ROWS] == [6, 10, 32, None]
    unknown = replace(REPORT, rows=(replace(ROWS[0], bytes_after=None), *ROWS[1:]))
    assert unknown.totals()["bytes_after"] is None
    assert unknown.totals()["bits_per_weight"] is None


def test_json_holds_every_row_and_the_totals():
    content = json.loads(REPORT.table().to_json())
    rows = content.pop("rows")
    assert content == REPORT.totals()
    assert rows == [json.loads(json.dumps(row.record())) for row in ROWS]
    assert rows[1]["settings"] == {"nm_sparsity": [2, 4]}


def test_csv_holds_every_row():
    rows = list(csv.DictReader(io.StringIO(REPORT.table().to_csv())))
    assert [row["name"] for row in rows] == [row.name for row in ROWS]
    assert set(rows[0]) == set(ROWS[0].record())
    assert json.loads(rows[1]["shape"]) == [2, 4, 1, 2]
    assert json.loads(rows[1]["settings"]) == {"nm_sparsity": [2, 4]}
    assert (rows[2]["relative_error"], rows[1]["seconds"]) == ("", "")
    assert float(rows[0]["relative_error"]) == 0.0123


def test_text_is_a_table_for_people():
    text = REPORT.table().to_text()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    lines = text.splitlines()
    assert lines[0] == "in.st → out.st"
    plain = [" ".join(line.split()) for line in lines]
    assert "fc.weight 8 × 4 float32 codebook n_bits=2 128 24 6.00 0.0123 0.25" in plain
    assert "bias 8 float32 not a matrix 32 32 32.00 – 0.00" in plain
    assert lines[-1] == "2 of 4 tensors compressed, 400 → 160 bytes, 2.50 × smaller, 1.5 s"
    narrow = REPORT.table().to_text(60)
    assert max(map(len, narrow.splitlines()[:-1])) <= 60


@pytest.mark.parametrize("width", [None, 60, 80, 100])
def test_names_are_never_broken_and_words_fit(width):
    name = "model.language_model.layers.17.self_attention.query_key_value.weight"
    rows = (replace(ROWS[0], name=name), replace(ROWS[2], reason="words " * 30), *ROWS)
    lines = replace(REPORT, rows=rows).table().to_text(width).splitlines()
    assert sum(name in line for line in lines) == 1
    if width is not None:
        assert max(map(len, lines[:-1])) <= max(width, len(name) + 1)
        assert " ".join(" ".join(lines).split()).count("words") == 30
    words = [line.split() for line in lines]
    numbers = [line for line in words if line[-6:-4] == ["128", "24"] or "0.0123" in line]
    assert len(numbers) == 2


def test_long_tables_take_time_in_proportion():
    rows = tuple(replace(ROWS[0], name=f"layers.{i}.weight") for i in range(20_000))
    start = time.perf_counter()
    text = replace(REPORT, rows=rows).table().to_text()
    assert time.perf_counter() - start < 10  # 0.5 s where nothing else runs
    assert text.count("\n") == 20_005


def test_text_of_a_dry_run_says_what_is_known():
    dry = replace(REPORT, dry_run=True, file_bytes_after=None)
    text = dry.table().to_text()
    assert text.splitlines()[-1] == "2 of 4 tensors would be compressed, tensors of 192 → 76 bytes"
    assert "error" not in text
    bound = replace(dry, rows=(replace(ROWS[0], at_most=True), *ROWS[1:]))
    plain = [" ".join(line.split()) for line in bound.table().to_text().splitlines()]
    assert "fc.weight 8 × 4 float32 codebook n_bits=2 128 ≤ 24 ≤ 6.00" in plain
    assert plain[-1].endswith("192 → ≤ 76 bytes")
    content = json.loads(bound.table().to_json())
    assert (content["at_most"], content["bytes_after"]) == (True, 76)
    assert [row["at_most"] for row in content["rows"]] == [True, False, False, False]
    unknown = replace(dry, rows=(replace(ROWS[0], bytes_after=None), *ROWS[1:]))
    plain = [" ".join(line.split()) for line in unknown.table().to_text().splitlines()]
    assert "fc.weight 8 × 4 float32 codebook n_bits=2 128 – –" in plain
    last = "2 of 4 tensors would be compressed, no total before the run: sizes of 1 tensors depend"
    assert plain[-1] == f"{last} on their values, the others take 52 bytes"


def test_text_says_what_an_error_counts_where_it_is_not_plain():
    assert "metric" not in REPORT.table().to_text()
    rows = (replace(ROWS[0], metric="squares", plain_error=ROWS[0].relative_error),)
    rows += (replace(ROWS[1], metric="input_covariance", plain_error=0.125), *ROWS[2:])
    text = replace(REPORT, rows=rows).table().to_text()
    plain = [" ".join(line.split()) for line in text.splitlines()]
    assert any("error metric plain error s" in line for line in plain)
    assert (
        "fc.weight 8 × 4 float32 codebook n_bits=2 128 24 6.00 0.0123 squares 0.0123 0.25" in plain
    )
    assert any("0.5 covariance 0.125" in line for line in plain)


def test_names_are_text_not_markup_nor_commands():
    row = replace(ROWS[0], name="[red]layers[0]")
    assert "[red]layers[0]" in replace(REPORT, rows=(row,)).table().to_text()
    report = replace(
        REPORT, source="\x1b[2Jin.st", rows=(replace(row, name="a\x1b[31m\nb\u202ec"),)
    )
    text = report.table().to_text()
    assert "\\x1b[2Jin.st" in text
    assert "a\\x1b[31m\\nb\\u202ec" in text
    assert "\x1b" not in text
    assert "重み" in replace(REPORT, rows=(replace(row, name="重み"),)).table().to_text()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(400, 160, "2.50 × smaller"), (16, 104, "6.50 × larger"), (0, 8, "0 → 8 bytes, 1.5 s")],
)
def test_larger_files_are_called_so(before, after, said):
    report = replace(REPORT, file_bytes_before=before, file_bytes_after=after)
    assert said in report.table().to_text()


@pytest.mark.parametrize("ending", [".txt", ".json", ".csv"])
def test_files_are_what_the_table_gives(tmp_path, ending):
    table = REPORT.table()
    path = tmp_path / f"report{ending}"
    path.write_text("the old one")
    table.save(path)
    given = {".txt": table.to_text, ".json": table.to_json, ".csv": table.to_csv}[ending]()
    assert path.read_text(encoding="utf-8") == given


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"report must end in \.txt, \.json, \.csv, got '.*\.xml'"):
        REPORT.table().save(tmp_path / "report.xml")


def test_places_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        REPORT.table().save(tmp_path / "folder.txt")
    with pytest.raises(FileNotFoundError, match="none"):
        REPORT.table().save(tmp_path / "none" / "report.txt")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
        REPORT.table().save(tmp_path / "report.txt")


def test_infinity_is_null_in_json_and_no_rows_are_a_table_too():
    table = Table("t", [{"a": float("inf")}], {"a": "A"}, {"b": [float("nan")]}, "")
    assert json.loads(table.to_json()) == {"b": [None], "rows": [{"a": None}]}
    empty = replace(REPORT, rows=()).table()
    assert json.loads(empty.to_json())["rows"] == []
    assert empty.to_text().splitlines()[-1].startswith("0 of 0 tensors")
    (header,) = empty.to_csv().splitlines()
    assert set(header.split(",")) <= set(ROWS[0].record())


def test_a_report_of_decompressing_says_so():
    text = replace(REPORT, task="decompress").table().to_text()
    assert text.splitlines()[-1] == "2 of 4 tensors decompressed, 400 → 160 bytes, 1.5 s"


# --- figures


@pytest.fixture
def run(tmp_path, rng):
    tensors = {f"fc{i}": rng.standard_normal((64, 40 + i)).astype(np.float32) for i in range(14)}
    tensors["conv"] = rng.standard_normal((48, 8, 3, 3)).astype(np.float16)
    tensors["flat"] = np.zeros((40, 40), np.float32)
    tensors["bias"] = np.zeros(40, np.float32)
    np.savez(tmp_path / "net.npz", **tensors)
    recipe = {
        "default": {"method": "codebook", "n_bits": 3},
        "names": {"fc3": {"method": "low_rank", "rank": 8}},
    }
    return compress_file(tmp_path / "net.npz", tmp_path / "net.safetensors", recipe)


def test_figures_are_drawn(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("fastfactor.figures.draw.MAX_MATRICES", 5)
    monkeypatch.setattr("fastfactor.figures.draw.MAX_CURVES", 2)
    seen = []
    paths = save_figures(run, tmp_path / "new" / "figs", progress=lambda *a: seen.append(a))
    names = ["sizes.png", "errors.png", "curves.png", "singular_values.png", "values.png"]
    assert [path.name for path in paths] == names
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000
    assert seen[0] == ("fc13", 0, 5)
    assert seen[-1] == ("", 5, 5)


def test_figures_without_compressed_tensors(tmp_path):
    pytest.importorskip("matplotlib")
    np.savez(tmp_path / "a.npz", bias=np.zeros(3))
    recipe = {"default": {"method": "keep"}}
    report = compress_file(tmp_path / "a.npz", tmp_path / "a.safetensors", recipe)
    assert [path.name for path in save_figures(report, tmp_path / "figs")] == ["sizes.png"]


def test_figures_of_one_tensor(tmp_path, rng):
    pytest.importorskip("matplotlib")
    # A formula that is none, letters that the font has not, a command, a second line.
    name = r"$\frac$" + "重み\x1b[31m\n"
    save_file({name: rng.standard_normal((40, 64))}, tmp_path / "a.safetensors")
    recipe = {"default": {"method": "prune", "sparsity": 0.5}}
    report = compress_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe)
    assert len(save_figures(report, tmp_path / "figs")) == 5


def test_spectra_of_large_matrices_say_that_they_are_samples(run, monkeypatch):
    row = next(row for row in run.rows if row.name == "fc13")
    whole = figure_data.matrix_of(run, row, None)
    assert whole.spectrum_of == "64 × 53"
    assert whole.values_of == "all rows"
    W = np.load(run.source)["fc13"]
    np.testing.assert_allclose(whole.spectrum, np.linalg.svd(W, compute_uv=False), rtol=1e-5)
    monkeypatch.setattr(figure_data, "MAX_SIDE", 32)
    monkeypatch.setattr(figure_data, "MAX_VALUES", 1000)
    part = figure_data.matrix_of(run, row, None)
    assert part.spectrum_of == "32 × 27 of 64 × 53"
    assert part.values_of == "16 of 64 rows"
    expected = np.linalg.svd(W[::2, ::2].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(part.spectrum, expected)
    np.testing.assert_array_equal(part.before, W[::4].ravel())


def test_curves_are_what_the_methods_reach(run, monkeypatch):
    row = next(row for row in run.rows if row.name == "fc3")
    curve = figure_data.curve_of(run, row, None)
    assert curve.cut == "64 × 43"
    assert curve.chosen == (row.bits_per_weight, pytest.approx(row.relative_error))
    # low_rank's own curve is that of singular values, at other ranks.
    W = np.load(run.source)["fc3"]
    ranks = {LowRank(rank=r).compress(W).bits_per_weight: r for r in range(1, 26)}
    spectrum = np.linalg.svd(W.astype(np.float64), compute_uv=False) ** 2
    for bits, error in [*curve.method, *curve.svd]:
        assert error == pytest.approx(1 - spectrum[: ranks[bits]].sum() / spectrum.sum(), rel=1e-4)
    assert [ranks[bits] for bits, _ in curve.method] == [2, 4, 8, 16, 25]
    row = next(row for row in run.rows if row.name == "fc4")
    monkeypatch.setattr(figure_data, "MAX_CURVE_SHAPE", (16, 32))
    curve = figure_data.curve_of(run, row, None)
    assert curve.cut == "16 × 32 of 64 × 44"
    part = np.load(run.source)["fc4"][::4, :32]
    errors = {}
    for n_bits in (1, 2, 3, 4, 5, 6, 8):
        factors = Codebook(n_bits=n_bits).compress(part)
        errors[factors.bits_per_weight] = factors.error(part)
    assert curve.chosen[1] == Codebook(n_bits=3).compress(part).error(part)
    assert len(curve.method) >= 3
    for bits, error in curve.method:
        assert error == errors[bits]


def test_curves_are_under_the_metric_of_the_run(tmp_path, rng):
    pytest.importorskip("matplotlib")
    W = rng.standard_normal((160, 40)).astype(np.float32)
    x = rng.standard_normal((99, 40)) * np.geomspace(0.1, 3, 40)
    np.savez(tmp_path / "net.npz", a=W, b=W, c=W)
    np.savez(tmp_path / "fisher.npz", a=rng.random(W.shape))
    np.savez(tmp_path / "inputs.npz", b=x.T @ x)
    report = compress_file(
        tmp_path / "net.npz",
        tmp_path / "out.safetensors",
        {"default": {"method": "codebook", "n_bits": 2}},
        importance=tmp_path / "fisher.npz",
        input_covariance=tmp_path / "inputs.npz",
    )
    importance = np.load(tmp_path / "fisher.npz")["a"][::2]
    expected = {
        "a": Codebook(n_bits=2).compress(W[::2], importance=importance),
        "b": Codebook(n_bits=2).compress(W[::2], input_covariance=x.T @ x),
        "c": Codebook(n_bits=2).compress(W[::2]),
    }
    weights = {"a": {"importance": importance}, "b": {"input_covariance": x.T @ x}, "c": {}}
    for row in report.rows:
        curve = figure_data.curve_of(report, row, None)
        factors = expected[row.name]
        assert curve.chosen[1] == factors.error(W[::2], **weights[row.name])
    assert "curves" in [path.stem for path in save_figures(report, tmp_path / "figs")]


def test_a_cut_that_settings_do_not_fit_has_no_curve_of_theirs(tmp_path, rng, monkeypatch):
    pytest.importorskip("matplotlib")
    np.savez(tmp_path / "net.npz", w=rng.standard_normal((64, 63)).astype(np.float32))
    recipe = {"default": {"method": "codebook", "n_bits": 4, "vector_dim": 7}}
    report = compress_file(tmp_path / "net.npz", tmp_path / "out.safetensors", recipe)
    monkeypatch.setattr(figure_data, "MAX_CURVE_SHAPE", (32, 32))
    curve = figure_data.curve_of(report, report.rows[0], None)
    assert curve.chosen is None
    assert len(curve.method) == 0
    assert len(curve.svd) > 5
    paths = save_figures(report, tmp_path / "figs")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_matplotlib_the_command_is_named(monkeypatch):
    from fastfactor.figures import require_matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fastfactor\[figures\]'"):
        require_matplotlib()


def test_representations_are_a_line():
    assert repr(REPORT) == f"Report(in.st → out.st: {REPORT.table().summary})"
    assert repr(REPORT.table()) == f"Table(in.st → out.st: {REPORT.table().summary})"
