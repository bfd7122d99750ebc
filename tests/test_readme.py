"""The README's examples run in order as one script and print what their comments say."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import fastfactor
import numpy as np
from fastfactor.cli import app as cli
from fastfactor.cli import bench as self_bench
from fastfactor.models.recipe import read_recipe
from safetensors.numpy import save_file
from typer.testing import CliRunner

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    fastfactor (.*)$", README, re.MULTILINE)
RECIPES = re.findall(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SCRIPT = "\n".join(re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))


def test_every_kernel_has_an_example():
    others = {"__version__", "deep_compression", "methods", "show_config", "store"}
    calls = [name for name in fastfactor.__all__ if name.islower() and name not in others]
    for call in (*calls, "balanced=True", "CSR", "PackedCodes.pack", "SparseCodes"):
        assert call in SCRIPT


def test_examples_print_what_they_say(capsys):
    said = re.findall(r"^print\(.*\)  # (.*)$", SCRIPT, re.MULTILINE)
    assert len(said) == SCRIPT.count("print(")
    exec(compile(SCRIPT, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == said


def test_commands_run_in_order(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_bench, "_workloads", lambda n_threads: iter(()))
    save_file({"fc": rng.standard_normal((64, 256)).astype(np.float16)}, "model.safetensors")
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        result = CliRunner().invoke(cli.app, shlex.split(command))
        assert result.exit_code == 0, f"{command}: {result.output}"
    made = {"small.safetensors", "large.safetensors", "errors.csv", "recipe.toml"}
    assert made < {path.name for path in tmp_path.iterdir()}


def test_recipes_are_recipes():
    assert len(RECIPES) == 1
    for text in RECIPES:
        recipe = read_recipe(tomllib.loads(text))
        rule, reason = recipe.decide("lm_head.weight", (64, 64), is_float=True)
        assert (rule.dtype, reason) == ("float16", "kept as float16")
