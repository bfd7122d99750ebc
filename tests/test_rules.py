"""The rules of the architecture, grepped; the documentation of public names; its examples, run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import fastfactor
import pytest
from fastfactor import deep_compression, methods, store

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "fastfactor"
CSRC = ROOT / "csrc"

# The function layer: arrays in, arrays out. It alone calls the compiled modules; `config` asks
# them what they are, and `_checks` how many threads there are.
FUNCTION_LAYER = {
    "sparse_coding",
    "clustering",
    "scalar_clustering",
    "products",
    "balancing",
    "coding",
    "packing",
    "selection",
    "sparse",
    "sparse_codes",
    "trellis",
    "config",
    "_checks",
}

sources = sorted(p for p in CSRC.rglob("*") if p.suffix in (".cpp", ".hpp", ".h"))
modules = sorted(PACKAGE.rglob("*.py"))


def test_the_sources_are_found():
    assert len(sources) > 10
    assert {path.stem for path in modules} > FUNCTION_LAYER


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def code_of(path):
    """A C++ file without its comments."""
    return re.sub(r"//.*|/\*.*?\*/", "", path.read_text())


def imports(path):
    """Absolute names of what a module imports, lazily or not, `fastfactor.` included."""
    package = ["fastfactor", *path.relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


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
    stems = {p.stem for p in (CSRC / "bindings").glob("*.cpp")} - {"module", "detect"}
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


# --- who may use whom, in Python


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_compiled_modules_are_called_by_the_function_layer_only(path):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if name.startswith("_core/") or name in FUNCTION_LAYER:
        return
    assert not any(used.startswith("fastfactor._core") for used in imports(path))


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_function_layer_uses_nothing_above_it(path):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if name not in FUNCTION_LAYER:
        return
    allowed = FUNCTION_LAYER | {"_core", "errors"}
    for used in imports(path):
        parts = used.split(".")
        if parts[0] == "fastfactor" and parts != ["fastfactor", "__version__"]:
            assert parts[1] in allowed, used


def test_the_package_imports_only_public_names():
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        listing = isinstance(node, ast.Assign) and node.targets[0].id in ("__all__", "__version__")
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        lazy = isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
        imports = isinstance(node, ast.ImportFrom)
        assert docstring or listing or imports or typing or lazy, ast.unparse(node)
    assert list(fastfactor.__all__) == sorted(set(fastfactor.__all__))


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
                assert name.split(".")[0] in light, f"{name} at the top of {path}"
                assert name != "typer" or path.name in ("cli.py", "cli_files.py")


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


# --- documentation


def public():
    return [name for name in fastfactor.__all__ if name != "__version__"]


def sections(docstring):
    """Titles of the sections of a numpydoc docstring."""
    return set(re.findall(r"^\s*(\w[\w ]*)\n\s*-{3,}$", docstring, re.MULTILINE))


@pytest.mark.parametrize("name", public())
def test_public_names_are_documented(name):
    thing = getattr(fastfactor, name)
    docstring = inspect.getdoc(thing)
    assert docstring
    assert re.match(r"^\S.*[.:]", docstring.splitlines()[0]), "one sentence first"
    found = sections(docstring)
    if inspect.isclass(thing):
        fields = set(getattr(thing, "_fields", getattr(thing, "__dataclass_fields__", ())))
        assert found & {"Attributes", "Parameters"}
        for field in fields:
            assert re.search(rf"^\s*{field}\b.* : ", docstring, re.MULTILINE), field
        if not issubclass(thing, tuple):  # what a function returns is shown by that function
            assert ">>>" in docstring
    else:
        parameters = inspect.signature(thing).parameters
        assert "Returns" in found
        assert "Examples" in found
        assert ">>>" in docstring
        for parameter in parameters:
            pattern = rf"^\s*(\w+, )*{parameter}(, \w+)*( : .*)?$"
            assert re.search(pattern, docstring, re.MULTILINE), parameter
        if parameters:
            assert {"Parameters", "Raises", "Notes"} <= found


@pytest.mark.parametrize("name", public())
def test_options_are_keyword_only_and_threads_are_one_of_them(name):
    thing = getattr(fastfactor, name)
    if inspect.isclass(thing) or not inspect.signature(thing).parameters:
        return
    for parameter in inspect.signature(thing).parameters.values():
        with_default = parameter.default is not parameter.empty
        assert (parameter.kind is parameter.KEYWORD_ONLY) == with_default, parameter
    assert inspect.signature(thing).parameters["n_threads"].default is None


@pytest.mark.parametrize("name", methods.__all__)
def test_methods_and_factors_are_documented(name):
    thing = getattr(methods, name)
    needed = {"Parameters", "Raises", "Notes", "Examples"}
    if issubclass(thing, methods.Factors):
        needed = {"Attributes"}
    assert needed <= sections(thing.__doc__)


@pytest.mark.parametrize("module", [store, deep_compression], ids=lambda module: module.__name__)
def test_functions_of_submodules_are_documented(module):
    for thing in (getattr(module, name) for name in module.__all__):
        if inspect.isfunction(thing):
            assert {"Parameters", "Raises", "Notes", "Examples"} <= sections(thing.__doc__), thing


def module_names():
    found = pkgutil.walk_packages(fastfactor.__path__, "fastfactor.")
    compiled = re.compile(r"\._core\._")
    return ["fastfactor"] + [
        m.name for m in found if not compiled.search(m.name) and not m.name.endswith("__main__")
    ]


@pytest.mark.parametrize("name", module_names())
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_docstrings_have_examples():
    """So that the test above has something to run."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test
        for name in module_names()
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) >= 5
