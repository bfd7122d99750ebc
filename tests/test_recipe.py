"""Recipes: what decides, what is refused and with which words, the starter."""

from __future__ import annotations

import inspect
import json
import time
import tomllib
from dataclasses import dataclass, replace

import numpy as np
import pytest
from fastfactor import compress_file, methods
from fastfactor.methods import Codebook, ConvSVD, LowRank, Method
from fastfactor.models.recipe import Recipe, method_names, method_settings, read_recipe
from fastfactor.models.starter import starter
from fastfactor.store import open_store

DEFAULT = {"method": "codebook", "n_bits": 4}
SHAPE = (64, 64)


def decided(recipe, name, shape=SHAPE, is_float=True):
    rule, reason = read_recipe(recipe).decide(name, shape, is_float=is_float)
    return rule.method, reason


def test_the_whole_name_then_the_skip_list_then_the_last_pattern_then_the_default():
    recipe = {
        "default": DEFAULT,
        "patterns": {
            "layers.*": {"method": "low_rank", "rank": 4},
            "*.wo": {"method": "prune", "sparsity": 0.5},
        },
        "names": {"layers.0.norm": {"method": "low_rank", "rank": 9}},
        "skip": ["*norm*", "layers.9.*"],
    }
    assert decided(recipe, "head") == ("codebook", "")
    assert decided(recipe, "layers.1.wq") == ("low_rank", "")
    assert decided(recipe, "layers.1.wo") == ("prune", "")
    assert decided(recipe, "layers.1.norm") == ("keep", "on the skip list")
    assert decided(recipe, "layers.9.wo") == ("keep", "on the skip list")
    assert decided(recipe, "layers.0.norm") == ("low_rank", "")
    assert decided(recipe, "Layers.1.wq") == ("codebook", "")
    swapped = {**recipe, "patterns": dict(reversed(recipe["patterns"].items()))}
    assert decided(swapped, "layers.1.wo") == ("low_rank", "")


@pytest.mark.parametrize(
    ("shape", "is_float", "reason"),
    [
        ((64, 64), True, ""),
        ((32, 32), True, ""),
        ((4, 256), True, ""),
        ((31, 33), True, "1,023 weights, fewer than min_size, 1,024"),
        ((64, 8, 2, 2), True, ""),
        ((64, 3, 2, 2), True, "768 weights, fewer than min_size, 1,024"),
        ((1, 4096), True, "a side of 1, shorter than min_side, 2"),
        ((64, 0), True, "no weights"),
        ((64,), True, "not a matrix"),
        ((), True, "not a matrix"),
        ((64, 64), False, "not floating-point"),
    ],
)
def test_which_tensors_the_default_takes(shape, is_float, reason):
    assert decided({"default": DEFAULT}, "w", shape, is_float)[1] == reason


def test_a_whole_name_takes_small_matrices_but_not_empty_ones():
    recipe = {"names": {"w": DEFAULT}, "min_side": 100}
    assert decided(recipe, "w", (2, 3)) == ("codebook", "")
    assert decided(recipe, "w", (2, 0)) == ("keep", "no weights")
    assert decided(recipe, "other") == ("keep", "kept by the recipe")
    with_patterns = {"patterns": {"*": DEFAULT}, "min_side": 100}
    reason = "a side of 99, shorter than min_side, 100"
    assert decided(with_patterns, "w", (99, 200)) == ("keep", reason)


def test_keep_with_a_dtype():
    recipe = {"default": {"method": "keep", "dtype": "float16"}}
    assert decided(recipe, "bias", (3,)) == ("keep", "kept as float16")
    assert decided(recipe, "steps", (3,), is_float=False) == ("keep", "not floating-point")


def test_settings_make_the_method_lists_as_tuples():
    recipe = read_recipe({"default": {"method": "prune", "nm_sparsity": [2, 4], "pool": "max"}})
    assert recipe.default.compressor == methods.Prune(nm_sparsity=(2, 4), pool="max")
    assert recipe.default.settings == {"nm_sparsity": (2, 4), "pool": "max"}
    assert read_recipe(recipe) is recipe


def test_a_file_says_the_same_as_a_dict(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'skip = ["*bias"]\nmin_side = 8\n[default]\nmethod = "low_rank"\nratio = 8\n'
        '[patterns."*.conv?.*"]\nmethod = "keep"\n[names."a.b"]\nmethod = "codebook"\nn_bits = 2\n'
    )
    recipe = read_recipe(path)
    assert recipe == read_recipe(
        {
            "skip": ["*bias"],
            "min_side": 8,
            "default": {"method": "low_rank", "ratio": 8},
            "patterns": {"*.conv?.*": {"method": "keep"}},
            "names": {"a.b": {"method": "codebook", "n_bits": 2}},
        }
    )
    assert recipe.default.compressor == LowRank(ratio=8)
    assert recipe.names["a.b"].compressor == Codebook(n_bits=2)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({}, ["default, patterns or names"]),
        ({"defaults": DEFAULT}, ["'defaults'", "did you mean 'default'?"]),
        ({"default": {}}, ["method in [default]", "none"]),
        ({"default": {"method": "codebok"}}, ["'codebok'", "did you mean 'codebook'?"]),
        ({"default": {"method": "xyzzy"}}, ["codebook, ", "low_rank, ", "'xyzzy'"]),
        ({"default": {**DEFAULT, "nbits": 4}}, ["n_bits", "'nbits'", "mean 'n_bits'?"]),
        ({"default": {"method": "keep", "dtyp": 4}}, ["'dtyp'", "mean 'dtype'?"]),
        ({"default": {"method": "keep", "dtype": "int8"}}, ["dtype in [default]", "'int8'"]),
        ({"default": {"method": "codebook", "n_bits": 9}}, ["[default]: n_bits", "got 9"]),
        ({"default": {"method": "codebook"}}, ["[default]: exactly one of n_bits"]),
        ({"patterns": {"*.w": {"method": "lowrank"}}}, ['[patterns."*.w"]', "'low_rank'?"]),
        ({"default": DEFAULT, "min_side": 0}, ["min_side", "got 0"]),
        ({"default": DEFAULT, "if_impossible": "skip"}, ["if_impossible", "'skip'"]),
    ],
)
def test_what_is_wrong_is_named_with_what_was_meant(recipe, words):
    with pytest.raises(ValueError, match=r"got|given") as raised:
        read_recipe(recipe)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    "recipe",
    [
        {"default": "codebook"},
        {"default": {"method": "codebook", "n_bits": "4"}},
        {"default": {"method": "codebook", "n_bits": {"a": 4}}},
        {"default": DEFAULT, "skip": "*bias"},
        {"default": DEFAULT, "skip": [3]},
        {"default": DEFAULT, "names": ["a"]},
        {"default": DEFAULT, "min_side": 1.5},
        7,
    ],
)
def test_wrong_types(recipe):
    with pytest.raises(TypeError, match="got"):
        read_recipe(recipe)


def test_files_are_named_in_errors(tmp_path):
    path = tmp_path / "r.toml"
    for text in ("[default", '[default]\nmethod = "codebok"'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"r\.toml: "):
            read_recipe(path)
    path.write_bytes(b'skip = ["\xff"]')
    with pytest.raises(ValueError, match=r"r\.toml: .*utf-8"):
        read_recipe(path)
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.toml")


def test_names_must_be_the_models():
    recipe = read_recipe({"default": DEFAULT, "names": {"fc1.wieght": DEFAULT}})
    with pytest.raises(ValueError, match=r"'fc1.wieght'; did you mean 'fc1.weight'\?"):
        recipe.check_names(["fc1.weight", "fc2.weight"])
    recipe.check_names(["fc1.wieght"])


def test_names_are_looked_up_not_searched_for():
    names = [f"layers.{i}.weight" for i in range(20_000)]
    recipe = read_recipe({"names": dict.fromkeys(names, DEFAULT)})
    start = time.perf_counter()
    recipe.check_names(names)
    assert time.perf_counter() - start < 1  # 10 ms; 4 s if each is searched for in a list


def test_fingerprints_tell_recipes_apart():
    one = {"default": DEFAULT, "patterns": {"a": DEFAULT, "b": {"method": "keep"}}}
    others = [
        {**one, "default": {**DEFAULT, "n_bits": 3}},
        {**one, "default": {**DEFAULT, "granularity": "row"}},
        {**one, "patterns": dict(reversed(one["patterns"].items()))},
        {**one, "patterns": {**one["patterns"], "b": {"method": "keep", "dtype": "float16"}}},
        {**one, "names": {"a": DEFAULT}},
        {**one, "skip": ["a"]},
        {**one, "min_side": 8},
        {**one, "if_impossible": "keep"},
    ]
    prints = [read_recipe(recipe).fingerprint() for recipe in (one, *others)]
    assert len(set(prints)) == len(prints)
    reordered = {**one, "default": dict(reversed(DEFAULT.items()))}
    assert read_recipe(reordered).fingerprint() == prints[0]


def test_every_method_has_a_name():
    found = method_names()
    things = [getattr(methods, name) for name in methods.__all__]
    classes = {thing for thing in things if inspect.isclass(thing) and issubclass(thing, Method)}
    classes = {each for each in classes if not inspect.isabstract(each)}
    assert set(found.values()) == classes
    assert list(found.values())[: len(classes)] == [it for it in things if it in found.values()]
    assert found["low_rank"] is LowRank
    assert found["conv_svd"] is ConvSVD
    assert all(name == name.lower() for name in found)


@pytest.fixture
def own_methods(monkeypatch):
    """Methods defined in the test are forgotten after it."""
    monkeypatch.setattr(Method, "names", dict(Method.names))


def test_a_method_of_ones_own_works_in_recipes_and_files(own_methods, tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class FirstRank(LowRank):
        scale: float = 1.0

        def _compress(self, problem):
            factors = LowRank(rank=self.rank).compress(problem.W)
            return replace(factors, B=factors.B * np.float32(self.scale))

    W = np.outer(np.arange(40), np.arange(50)).astype(np.float32)
    np.savez(tmp_path / "net.npz", w=W)
    rule = {"method": "first_rank", "rank": 1, "scale": 2.0}
    compress_file(tmp_path / "net.npz", tmp_path / "net.safetensors", {"default": rule})
    with open_store(tmp_path / "net.safetensors") as saved:
        np.testing.assert_allclose(saved["w"].to_dense(), 2 * W, rtol=1e-5)
    with pytest.raises(ValueError, match="'scal'; did you mean 'scale'"):
        read_recipe({"default": {"method": "first_rank", "rank": 1, "scal": 2.0}})


def test_a_method_of_ones_own_must_not_take_a_name_of_the_package(own_methods):
    with pytest.raises(TypeError, match="one of fastfactor's, got Codebook"):
        type("Codebook", (LowRank,), {})
    assert Method.names["codebook"] is Codebook


def test_the_starter_is_a_recipe_and_names_every_method_and_setting():
    text = starter()
    recipe = read_recipe(tomllib.loads(text))
    assert isinstance(recipe, Recipe)
    for name, settings in method_settings().items():
        assert f"# {name}: " in text
        assert {"ratio", "max_error", method_names()[name].parameter} <= set(settings)
        for setting, value in settings.items():
            said = "" if value is None else f" = {json.dumps(value)}"
            assert f"#   {setting}{said}\n" in text
    assert max(map(len, text.splitlines())) <= 100
    # What stands in comments is a recipe too.
    lines = text[text.index("# [patterns") : text.index("# Methods")].splitlines()
    tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"method": "block_diagonal", "n_blocks": 4, "permute": "no"}, "permute must be True or"),
        ({"method": "block_projection", "reduction": 2, "learned": 3}, "learned must be True or"),
        ({"method": "block_projection", "reduction": 2, "shared": "no"}, "shared must be True or"),
        (
            {"method": "mixed_block", "rank": 2, "block_shape": 4},
            "block_shape must be two integers",
        ),
    ],
)
def test_words_are_no_truth_values_and_numbers_no_shapes(rule, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read_recipe({"default": rule})
