"""The command `bench`."""

from __future__ import annotations

import json

import fastfactor
from command_line import invoke


def test_bench_as_json(monkeypatch, tmp_path):
    from fastfactor.cli import bench as self_bench

    monkeypatch.setattr(self_bench, "N_SAMPLES", 1)
    monkeypatch.setattr(self_bench, "MIN_SECONDS", 0.0)
    result = invoke("bench", "--json", "--threads", 2, "--report", tmp_path / "bench.txt")
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert content["config"]["threads"] == "2"
    names = {row["name"] for row in content["rows"]}
    assert {"omp", "kmeans", "kmeans1d", "spmm", "codebook_matmul", "huffman_decode"} <= names
    for row in content["rows"]:
        assert row["seconds"] > 0
        assert row["spread"] == 1
        assert row["per_second"] > 0
        assert hasattr(fastfactor, row["name"])
    assert "assignments/s" in (tmp_path / "bench.txt").read_text(encoding="utf-8")
