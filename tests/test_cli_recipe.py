"""The command `recipe`."""

from __future__ import annotations

import json

from command_line import invoke, run


def test_a_recipe_is_not_replaced_unless_forced(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("mine")
    done = run("recipe", str(path))
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert path.read_text() == "mine"
    assert run("recipe", str(path), "--force").returncode == 0
    assert path.read_text(encoding="utf-8") == invoke("recipe").output
    methods = json.loads(invoke("recipe", "--json").output)["methods"]
    assert methods["codebook"]["granularity"] == "tensor"


def test_a_minus_is_standard_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("recipe", "-").output == invoke("recipe").output
    assert list(tmp_path.iterdir()) == []
