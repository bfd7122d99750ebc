"""Recipes: rules for how each tensor of a model is compressed, read from TOML or a dict.

For example, in TOML:

min_size = 1024                   # tensors with fewer weights are not compressed
skip = ["*norm*", "*.bias"]       # tensors whose names match a pattern are not compressed

[default]                         # for every other matrix
method = "codebook"
n_bits = 4

[patterns."*embed*"]              # the last pattern that matches a name decides
method = "low_rank"
ratio = 8

[names."lm_head.weight"]          # a full name has precedence over everything else
method = "keep"
dtype = "float16"
"""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from .. import _checks, methods
from ..files.disk import open_regular_file
from ..methods.base import Method, recipe_name
from ..methods.factors import FLOAT_NAMES
from .layouts import AUTO, LAYOUTS
from .rules import KEEP, TIED, Recipe, Rule
from .suggestion import nearest

MIN_SIZE = 1024
MIN_SIDE = 2  # a single row, such as a mask or a table of positions, is no matrix
KEYS = (
    "default",
    "patterns",
    "names",
    "skip",
    "min_size",
    "min_side",
    "keep_dtype",
    "if_impossible",
    "tied",
)
IF_IMPOSSIBLE = ("stop", "keep")


def read_recipe(source: Any) -> Recipe:
    """Read and check a recipe from a TOML file or a dict.

    Parameters
    ----------
    source : path, mapping or Recipe
        The docstring of this module has an example.

    Returns
    -------
    Recipe

    Raises
    ------
    TypeError, ValueError
        For unknown keys, methods and settings (with the nearest known one), and for settings that
        a method does not accept.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> from fastfactor.models.recipe import read_recipe
    >>> recipe = read_recipe({"default": {"method": "codebook", "n_bits": 4}})
    >>> recipe.decide("fc.weight", (300, 784), is_float=True)[0].compressor.n_bits
    4
    >>> read_recipe({"default": {"method": "codebok"}})
    Traceback (most recent call last):
    ValueError: method in [default] must be ..., got 'codebok'; did you mean 'codebook'?
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        with open_regular_file(path) as file:
            try:
                return _recipe(tomllib.load(file))
            except (TypeError, ValueError) as error:
                raise located(error, path) from error
    if not isinstance(source, Mapping):
        raise TypeError(f"recipe must be a path or a mapping, got {type(source).__name__}")
    return _recipe(source)


def read_rule(source: Any, where: str) -> Rule:
    """Read and check a rule from a table; ``where`` names the table in errors.

    Raises
    ------
    TypeError, ValueError
        As for :func:`read_recipe`.
    """
    if not isinstance(source, Mapping):
        raise TypeError(f"{where} must be a table with a method, got {source!r}")
    name = source.get("method")
    if name is None:
        raise ValueError(f"method in {where} must be given, got none")
    check_method(name, f"method in {where}")
    known = method_names()
    settings = {key: _plain(value, f"{key} in {where}") for key, value in source.items()}
    del settings["method"]
    layout = _checks.choice(settings.pop("layout", AUTO), f"layout in {where}", LAYOUTS)
    if name == KEEP:
        _check_keys(settings, ("dtype",), KEEP, where)
        dtype = settings.get("dtype")
        if dtype is not None:
            _checks.choice(dtype, f"dtype in {where}", FLOAT_NAMES)
        return Rule(KEEP, {}, None, dtype, layout)
    _check_keys(settings, tuple(f.name for f in settings_of(known[name])), name, where)
    try:
        return Rule(name, settings, known[name](**settings), layout=layout)
    except (TypeError, ValueError) as error:
        raise located(error, where) from error


def check_options(given: Mapping[str, Any], prefix: str = "") -> None:
    """Check the values of `keep_dtype`, `if_impossible` and `tied`, if they are given.

    Raises
    ------
    TypeError, ValueError
        With the name of the option, as it is on the command line if the prefix is ``"--"``.
    """
    known = {"keep_dtype": FLOAT_NAMES, "if_impossible": IF_IMPOSSIBLE, "tied": TIED}
    for key, options in known.items():
        if key in given:
            name = prefix + (key.replace("_", "-") if prefix else key)
            _checks.choice(given[key], name, options)


def check_method(name: Any, what: str) -> None:
    """Check that a value is the name of a method in recipes, or ``"keep"``.

    Raises
    ------
    ValueError
        With the nearest name; ``what`` names the value in the message.
    """
    known = [*method_names(), KEEP]
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{what} must be one of {', '.join(known)}, got {name!r}{nearest(str(name), known)}"
        )


def method_names() -> dict[str, type[Method]]:
    """Return every method by its name in recipes: those of fastfactor, then others imported."""
    return dict(_method_names(tuple(Method.names.values())))


@cache
def _method_names(known: tuple[type[Method], ...]) -> dict[str, type[Method]]:
    names = {recipe_name(method.__name__): method for method in known}
    own = [names[name] for name in map(recipe_name, methods.__all__) if name in names]
    every = dict.fromkeys([*own, *known])
    return {recipe_name(it.__name__): it for it in every if not inspect.isabstract(it)}


def method_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of every method with their defaults."""
    return {
        name: {
            setting.name: None if setting.default is MISSING else setting.default
            for setting in settings_of(method)
        }
        for name, method in method_names().items()
    }


def located(error: TypeError | ValueError, where: str) -> TypeError | ValueError:
    """Return an error with the place where it was found in front of its message."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{where}: {error}")


def _recipe(source: Mapping[str, Any]) -> Recipe:
    for key in source:
        if key not in KEYS:
            raise ValueError(
                f"keys of a recipe must be among {', '.join(KEYS)}, got {key!r}{nearest(key, KEYS)}"
            )
    tables = {}
    for key in ("patterns", "names"):
        table = source.get(key, {})
        if not isinstance(table, Mapping):
            raise TypeError(f"{key} must be a table of rules, got {table!r}")
        tables[key] = {
            str(name): read_rule(rule, f'[{key}."{name}"]') for name, rule in table.items()
        }
    if not any(key in source for key in ("default", "patterns", "names")):
        raise ValueError("a recipe must have a default, patterns or names, got none of them")
    check_options(source)
    skip = source.get("skip", ())
    if not isinstance(skip, list | tuple) or not all(isinstance(text, str) for text in skip):
        raise TypeError(f"skip must be a list of patterns, got {skip!r}")
    return Recipe(
        default=read_rule(source.get("default", {"method": KEEP}), "[default]"),
        skip=tuple(skip),
        min_size=_checks.integer(source.get("min_size", MIN_SIZE), "min_size", 1),
        min_side=_checks.integer(source.get("min_side", MIN_SIDE), "min_side", 1),
        keep_dtype=source.get("keep_dtype"),
        if_impossible=source.get("if_impossible", "stop"),
        tied=source.get("tied", TIED[0]),
        **tables,
    )


def _check_keys(given: Iterable[str], known: tuple[str, ...], method: str, where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(
                f"settings of {method} in {where} must be among {', '.join(known)}, "
                f"got {key!r}{nearest(key, known)}"
            )


def _plain(value: Any, what: str) -> Any:
    """Check that a setting has a type that TOML can write; return it with lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item, what) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{what} must be a number, a string, a boolean or a list, got {value!r}")


def settings_of(method: type[Method]) -> list[Any]:
    """Return the fields of a method: its own first, ratio and max_error last."""
    common = [f.name for f in fields(Method)]
    return sorted((f for f in fields(method) if f.init), key=lambda f: f.name in common)
