"""README and docs: examples run and print what they say, links work, no name is missing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import fastfactor
import numpy as np
import pages
import pytest
from fastfactor.cli import bench as self_bench
from fastfactor.demo import run as demo
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEED_TORCH = [
    ROOT / "docs/operator.md",
    ROOT / "docs/convolutions.md",
    ROOT / "examples/compress_while_training.py",
    ROOT / "examples/factor_convolutions.py",
]
NEED_KERAS = [ROOT / "docs/keras.md"]  # which keras_cases.py runs
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REFERENCE = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.rst"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def model_folder(tmp_path, monkeypatch):
    """A folder with the model that the pages' examples are about, as the one we are in."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    tensors = {
        "embed.weight": rng.standard_normal((512, 64)),
        "fc.weight": rng.standard_normal((128, 256)),
        "fc.bias": np.zeros(128),
        "lm_head.weight": rng.standard_normal((512, 64)),
    }
    save_file({name: t.astype(np.float32) for name, t in tensors.items()}, "model.safetensors")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p not in NEED_TORCH + NEED_KERAS], ids=name_of
)
def test_examples_print_what_they_say(page, model_folder, monkeypatch, capsys):
    monkeypatch.setattr(self_bench, "_workloads", lambda n_threads: iter(()))
    monkeypatch.setattr(demo, "FORMS", {})  # what the demo does has tests of its own
    pages.run(pages.blocks_of(page), capsys)


@pytest.mark.framework
@pytest.mark.parametrize("page", [p for p in PAGES if p in NEED_TORCH], ids=name_of)
def test_examples_with_pytorch_print_what_they_say(page, model_folder, capsys):
    for needed in ("torch", "onnx") if page.stem == "convolutions" else ("torch",):
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    pages.run(pages.blocks_of(page), capsys)


@pytest.mark.parametrize("example", [p for p in EXAMPLES if p not in NEED_TORCH], ids=name_of)
def test_example_scripts_run(example, tmp_path):
    check_script(example, tmp_path)


@pytest.mark.framework
@pytest.mark.parametrize("example", [p for p in EXAMPLES if p in NEED_TORCH], ids=name_of)
def test_example_scripts_with_pytorch_run(example, tmp_path):
    if not importlib.util.find_spec("torch"):
        pytest.skip("torch is not installed")
    check_script(example, tmp_path)


def check_script(path: Path, folder: Path) -> None:
    """Check that a script runs and prints something."""
    result = subprocess.run(
        [sys.executable, path], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_kernel_has_an_example():
    blocks = [block for page in PAGES for block in pages.blocks_of(page)]
    script = "\n".join(block.code for block in blocks if block.kind == "python")
    calls = [name for name in fastfactor.__all__ if inspect.isfunction(getattr(fastfactor, name))]
    calls.remove("show_config")  # prints what differs from machine to machine
    for call in (*calls, "balanced=True", "CSR", "PackedCodes.pack", "SparseCodes"):
        assert call in script


@pytest.mark.parametrize("module", ["", ".methods", ".store", ".deep_compression", ".training"])
def test_reference_has_every_public_name_once(module):
    public = importlib.import_module(f"fastfactor{module}").__all__
    submodules = {"deep_compression", "methods", "store", "training"}
    listed = re.findall(r"^(?:   |\.\. data:: )(\w+)$", REFERENCE, re.MULTILINE)
    for name in set(public) - submodules:
        assert listed.count(name) == 1, name


def test_command_line_page_is_what_help_says():
    script = ROOT / "docs" / "command_help.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
