"""The type stub of the compiled modules names what they hold: functions and their arguments."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from fastfactor import _core

PLACE = Path(inspect.getfile(_core)).parent
STUB = {
    node.name: [argument.arg for argument in node.args.args]
    for node in ast.parse((PLACE / "_kernels.pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
}


def test_stub_names_every_function():
    assert sorted(STUB) == [name for name in dir(_core.kernels) if not name.startswith("_")]


@pytest.mark.parametrize("name", STUB)
def test_stub_names_every_argument(name):
    signature = getattr(_core.kernels, name).__doc__.partition(" -> ")[0]
    assert STUB[name] == re.findall(r"[(,] ?(\w+): ", signature)
