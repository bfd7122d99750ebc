"""The rules of the architecture, grepped; the documentation of public names; its examples, run."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import fastfactor
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "fastfactor"
CSRC = ROOT / "csrc"

sources = sorted(p for p in CSRC.rglob("*") if p.suffix in (".cpp", ".hpp", ".h"))
modules = sorted(PACKAGE.rglob("*.py"))


def test_the_sources_are_found():
    assert len(sources) > 10
    assert len(modules) > 40


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def code_of(path):
    """A C++ file without its comments."""
    return re.sub(r"//.*|/\*.*?\*/", "", path.read_text())


# --- who may use whom, in C++


@pytest.mark.parametrize("path", sources, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes_go_down_only(path):
    folder = path.relative_to(CSRC).parts[0]
    below = {
        "core": {"core"},
        "kernels": {"kernels", "core"},
        "bindings": {"bindings", "kernels", "core"},
        "fuzz": {"fuzz", "kernels", "core"},
    }
    own = {name.split("/")[0] for name in includes(path) if (CSRC / name).exists()}
    assert own <= below[folder]
    if folder != "bindings":
        assert "pybind11" not in code_of(path)
        assert "Python.h" not in code_of(path)


@pytest.mark.parametrize("path", sources, ids=lambda p: str(p.relative_to(CSRC)))
def test_openmp_is_in_the_parallel_loop_only(path):
    if path.relative_to(CSRC).as_posix() == "core/parallel.cpp":
        assert "omp.h" in includes(path)
        return
    text = code_of(path)
    assert "omp.h" not in includes(path)
    assert not re.search(
        r"#\s*pragma\s+omp\b|\bomp_[a-z]+_[a-z_]+\s*\(|std::thread\s+\w|std::async", text
    )


def test_every_kernel_has_its_binding_and_module_cpp_only_lists_them():
    stems = {p.stem for p in (CSRC / "bindings").glob("*.cpp")} - {"module", "entry", "detect"}
    assert stems <= {p.stem for p in (CSRC / "kernels").glob("*/*.cpp")}
    listed = re.findall(
        r"^\s*bind_(\w+)\(m\);", (CSRC / "bindings" / "module.cpp").read_text(), re.M
    )
    assert set(listed) == stems
    assert len(listed) == len(stems)


def test_nothing_ships_for_one_machine_or_with_loose_mathematics():
    for path in [
        ROOT / "CMakeLists.txt",
        ROOT / "pyproject.toml",
        *sources,
    ]:
        text = path.read_text()
        for flag in ("-march=native", "-mtune=native", "-ffast-math", "-Ofast", "-funsafe-math"):
            assert flag not in text, f"{flag} in {path}"


# --- who may use whom, in Python: the contract that import-linter holds is in pyproject.toml


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(fastfactor) == list(fastfactor.__all__) == sorted(set(fastfactor.__all__))
    for name in fastfactor.__all__:
        assert getattr(fastfactor, name) is not None


def test_heavy_packages_are_imported_where_they_are_used():
    light = {"numpy", "typer"} | set(sys.stdlib_module_names) | {"fastfactor"}
    for path in modules:
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                if name.split(".")[0] == path.parent.name in ("keras", "torch"):
                    continue
                assert name.split(".")[0] in light, f"{name} at the top of {path}"
                assert name != "typer" or path.parent.name == "cli"


# --- text


def test_nothing_is_left_for_later():
    left = re.compile(
        r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b|except Exception|except:\s*$", re.M
    )
    for path in [*modules, *sources]:
        found = left.search(path.read_text())
        assert not found, f"{found.group()} in {path}"


def test_files_stay_readable():
    """Past 400 lines ask what the second idea is; past 600 there is one."""
    for path in [*modules, *sources]:
        assert len(path.read_text().splitlines()) <= 600, path
