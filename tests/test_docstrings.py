"""The documentation of public names: numpydoc's checks, what these do not ask for, examples run."""

from __future__ import annotations

import doctest
import enum
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re

import fastfactor
import numpydoc.validate
import pytest
from fastfactor import deep_compression, methods, store, training

# What numpydoc looks for and these docstrings do not have.
NOT_CHECKED = {
    "ES01",  # an extended summary: one line may say all
    "SA01",  # a See Also section
    "EX01",  # examples of every method and property
    "PR08",  # a capital letter first: descriptions may begin with a dtype, such as float32
    "RT04",  # the same of return values
}


# Rooms that need a framework of the same name, and can be imported where that is installed.
WITH_FRAMEWORK = ("torch", "keras", "onnx")
FRAMEWORKS = [name for name in WITH_FRAMEWORK if importlib.util.find_spec(name)]
os.environ.setdefault("KERAS_BACKEND", "torch")  # the one that the other room needs


def public_objects():
    """Functions and classes by name."""
    modules = [fastfactor, methods, store, deep_compression, training]
    modules += [importlib.import_module(f"fastfactor.{name}") for name in FRAMEWORKS]
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return {
        f"{thing.__module__}.{thing.__qualname__}": thing
        for thing in found
        if inspect.isfunction(thing) or inspect.isclass(thing)
    }


def members_of(thing):
    """Methods and properties that a class defines, by name."""
    kinds = (property, classmethod, staticmethod, type(members_of))
    return [
        name
        for name, member in vars(thing).items()
        if not name.startswith("_") and isinstance(member, kinds)
    ]


def sections(thing):
    """Titles of the sections of a numpydoc docstring."""
    return set(re.findall(r"^(\w[\w ]*)\n-{3,}$", inspect.getdoc(thing), re.MULTILINE))


def fields(thing):
    """Names of the fields that a dataclass or named tuple adds to those of its bases."""
    names = getattr(thing, "_fields", None) or getattr(thing, "__dataclass_fields__", ())
    own = inspect.get_annotations(thing)
    return [name for name in names if name in own and "ClassVar" not in str(own[name])]


def faults(name):
    """What numpydoc finds: pairs of its code and an explanation."""
    return [f for f in numpydoc.validate.validate(name)["errors"] if f[0] not in NOT_CHECKED]


PUBLIC = public_objects()
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(PUBLIC[name])]
CLASSES = [name for name in PUBLIC if inspect.isclass(PUBLIC[name])]
MEMBERS = {f"{c}.{name}": (PUBLIC[c], name) for c in CLASSES for name in members_of(PUBLIC[c])}


def test_the_public_objects_are_found():
    assert len(FUNCTIONS) > 20
    assert len(CLASSES) > 30
    assert len(MEMBERS) > 90


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name):
    assert faults(name) == []
    if inspect.signature(PUBLIC[name]).parameters:
        assert {"Parameters", "Raises", "Notes"} <= sections(PUBLIC[name])
    assert ">>>" in PUBLIC[name].__doc__


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_documented(name):
    """A class that a caller makes has parameters; what functions return has attributes."""
    thing = PUBLIC[name]
    # Fields are given by keyword, so their order says which matter most.
    found = [fault for fault in faults(name) if fault[0] != "PR03"]
    if getattr(thing, "_is_protocol", False) or issubclass(thing, enum.Enum):
        assert [fault for fault in found if fault[0] != "PR01"] == []  # nobody makes one
    elif "Attributes" in sections(thing):
        assert [fault for fault in found if fault[0] != "PR01"] == []
        for field in fields(thing):
            pattern = rf"^(\w+, )*{field}(, \w+)* : "
            assert re.search(pattern, inspect.getdoc(thing), re.MULTILINE), field
    else:
        assert found == []
        assert {"Parameters", "Raises"} <= sections(thing)
        assert ">>>" in thing.__doc__


@pytest.mark.parametrize("name", MEMBERS)
def test_methods_and_properties_are_documented(name):
    """Those that a class takes over from a base may take over the docstring as well."""
    owner, member = MEMBERS[name]
    inherited = any(
        getattr(getattr(base, member, None), "__doc__", None) for base in owner.__mro__[1:]
    )
    assert [fault for fault in faults(name) if not (fault[0] == "GL08" and inherited)] == []


@pytest.mark.parametrize(
    "name", [name for name in FUNCTIONS if PUBLIC[name].__name__ in fastfactor.__all__]
)
def test_options_are_keyword_only_and_threads_are_one_of_them(name):
    parameters = inspect.signature(PUBLIC[name]).parameters
    for parameter in parameters.values():
        with_default = parameter.default is not parameter.empty
        assert (parameter.kind is parameter.KEYWORD_ONLY) == with_default, parameter
    if parameters:
        assert parameters["n_threads"].default is None


def module_names():
    found = pkgutil.walk_packages(fastfactor.__path__, "fastfactor.")
    missing = "|".join(set(WITH_FRAMEWORK) - set(FRAMEWORKS)) or "none"
    left_out = re.compile(rf"\._core\._|\.__main__$|^fastfactor\.({missing})\b")
    return ["fastfactor"] + [m.name for m in found if not left_out.search(m.name)]


@pytest.mark.parametrize("name", module_names())
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
