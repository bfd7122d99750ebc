"""Tensors that a model holds twice are compressed and stored once, under both names."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch_files
from fastfactor import CorruptDataError, compress_file, decompress_file, store
from fastfactor.files.checkpoint import open_checkpoint
from fastfactor.files.container import header_bytes
from fastfactor.files.forms import read_header
from fastfactor.methods import Codebook, LowRank, LowRankFactors
from fastfactor.models.compare import compare_files
from fastfactor.models.inspect import inspect_file
from fastfactor.models.ties import MIN_NBYTES, equal_tensors
from models import same
from safetensors.numpy import save_file

RECIPE = {"default": {"method": "codebook", "n_bits": 4}}


@pytest.fixture
def tensors(rng):
    wte = rng.standard_normal((200, 96)).astype(np.float32)
    other = rng.standard_normal((200, 96)).astype(np.float32)
    return {"wte": wte, "h.weight": other, "lm_head": wte.copy(), "bias": np.ones(4, np.float32)}


def saved(folder, tensors, ending):
    path = folder / f"model{ending}"
    if ending == ".npz":
        np.savez(path, **tensors)
    elif ending == ".deflated.npz":
        np.savez_compressed(path, **tensors)
    elif ending == ".summed.safetensors":
        store.save(path, tensors)
    else:
        save_file(tensors, path)
    return path


ENDINGS = (".npz", ".deflated.npz", ".safetensors", ".summed.safetensors")


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_tied_tensor_is_stored_once_and_comes_back_twice(tmp_path, tensors, ending, compact):
    source = saved(tmp_path, tensors, ending)
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    report = compress_file(source, small, RECIPE, compact=compact)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == list(open_checkpoint(source))
    first, second = sorted(("wte", "lm_head"), key=list(rows).index)
    assert (rows[second].bytes_after, rows[second].reason) == (0, f"same as {first!r}")
    assert rows[first].method == "codebook"
    dry = compress_file(source, small, RECIPE, dry_run=True)
    assert [row.bytes_after for row in dry.rows] == [row.bytes_after for row in report.rows]
    with store.open_store(small) as opened:
        assert list(opened) == list(rows)
        assert opened.info(second).same_as == first
        assert opened.payload_nbytes < 2.1 * opened.info(first).nbytes + 500
        assert same(opened.to_dense("wte"), opened.to_dense("lm_head"))
        assert opened["lm_head"].tensors().keys() == opened["wte"].tensors().keys()
    decompress_file(small, back)
    with store.open_store(back) as opened:
        assert {name: opened[name].shape for name in opened} == {
            name: tensor.shape for name, tensor in tensors.items()
        }
        assert same(opened["wte"], opened["lm_head"])
    assert compare_files(small, back).equal
    kinds = {row["name"]: row["config"] for row in inspect_file(small, verify=True).records}
    assert kinds[second] == {"same_as": first}
    seen = {row["name"]: row["seen_as"] for row in inspect_file(source).records}
    assert seen[second] == f"same as {first!r}"


def test_kept_tensors_are_tied_too_and_may_be_compressed_later(tmp_path, tensors):
    kept, small = tmp_path / "kept.safetensors", tmp_path / "small.safetensors"
    compress_file(saved(tmp_path, tensors, ".npz"), kept, {"default": {"method": "keep"}})
    with store.open_store(kept) as opened:
        assert opened.info("lm_head").same_as == "wte"
        own = [tensors[name].nbytes for name in ("wte", "h.weight", "bias")]
        assert opened.payload_nbytes == sum(own)
    again = open_checkpoint(kept)
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert same(np.array(again[name]), array)
    compress_file(kept, small, RECIPE)
    with store.open_store(small) as opened:
        assert opened.info("lm_head").same_as == "wte" or opened.info("wte").same_as == "lm_head"


@pytest.mark.parametrize(
    "change",
    [
        {"tied": "each"},
        {"skip": ["lm_head"]},
        {"names": {"lm_head": {"method": "codebook", "n_bits": 3}}},
        {"patterns": {"lm*": {"method": "keep", "dtype": "float16"}}},
    ],
)
def test_other_rules_or_a_setting_keep_them_apart(tmp_path, tensors, change):
    small = tmp_path / "small.safetensors"
    compress_file(saved(tmp_path, tensors, ".npz"), small, RECIPE | change)
    with store.open_store(small) as opened:
        assert [opened.info(name).same_as for name in opened] == [None] * 4


def test_weights_of_errors_keep_them_apart(tmp_path, tensors):
    weights, small = tmp_path / "weights.npz", tmp_path / "small.safetensors"
    np.savez(weights, lm_head=np.ones((200, 96)))
    compress_file(saved(tmp_path, tensors, ".npz"), small, RECIPE, importance=weights)
    with store.open_store(small) as opened:
        assert opened.info("lm_head").same_as is None


@pytest.mark.parametrize("like", [True, False])
def test_equal_weights_of_errors_keep_them_tied(tmp_path, tensors, rng, like):
    weights, small = tmp_path / "weights.npz", tmp_path / "small.safetensors"
    of_wte = rng.random((200, 96))
    np.savez(weights, lm_head=of_wte if like else of_wte + 1, wte=of_wte)
    compress_file(saved(tmp_path, tensors, ".npz"), small, RECIPE, importance=weights)
    with store.open_store(small) as opened:
        assert opened.info("lm_head").same_as == ("wte" if like else None)
        expected = Codebook(n_bits=4).compress(tensors["wte"], importance=of_wte)
        assert same(opened["wte"].to_dense(), expected.to_dense())


def test_only_tensors_equal_to_the_last_bit(tmp_path, rng):
    a = rng.standard_normal((128, 256)).astype(np.float32)
    near, nan, sign = a.copy(), a.copy(), a.copy()
    near[100, 200] = np.nextafter(near[100, 200], np.float32(9))
    nan[3, 3], sign[4, 4] = np.nan, 0.0
    minus = sign.copy()
    minus[4, 4] = -0.0
    tensors = {
        **{"a": a, "b": a, "near": near, "nan": nan, "nan too": nan, "sign": sign, "minus": minus},
        **{"turned": a.reshape(256, 128), "half": a.astype(np.float16), "a third": a},
        **{"bf16": a.astype(ml_dtypes.bfloat16), "bf16 too": a.astype(ml_dtypes.bfloat16)},
        **{"int": a.view(np.int32), "int too": a.view(np.int32)},
        **{"vector": a.ravel(), "vector too": a.ravel()},
        **{"small": a[:4], "small too": a[:4], "zeros": 0 * a, "zeros too": 0 * a},
    }
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, tmp_path / "m")
    found = equal_tensors(open_checkpoint(tmp_path / "m"))
    pairs = [
        {"a", "b", "a third"},
        {"nan", "nan too"},
        {"bf16", "bf16 too"},
        {"zeros", "zeros too"},
    ]
    assert {frozenset((name, first)) for name, first in found.items()} <= {
        frozenset((x, y)) for pair in pairs for x in pair for y in pair
    }
    assert len(found) == 5
    assert a.nbytes >= MIN_NBYTES > a[:4].nbytes


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_goes_on(tmp_path, tensors, after):
    source = saved(tmp_path, tensors, ".npz")
    straight, target = tmp_path / "straight.safetensors", tmp_path / "out.safetensors"
    compress_file(source, straight, RECIPE)

    def stop(name, done, total):
        if list(tensors).index(name) == after:
            raise KeyboardInterrupt

    other = {**RECIPE, "patterns": {"wte": {"method": "codebook", "n_bits": 3}}}
    for first in (RECIPE, {**RECIPE, "tied": "each"}, other):
        with pytest.raises(KeyboardInterrupt):
            compress_file(source, target, first, resume=True, progress=stop)
        report = compress_file(source, target, RECIPE, resume=True)
        assert target.read_bytes() == straight.read_bytes()
        assert [row.reason for row in report.rows].count("same as 'wte'") == 1


RECIPES = {
    "4 bits": RECIPE,
    "3 bits": {"default": {"method": "codebook", "n_bits": 3}},
    "each": RECIPE | {"tied": "each"},
    "without the first": RECIPE | {"skip": ["a"]},
    "another first": RECIPE | {"names": {"a": {"method": "codebook", "n_bits": 3}}},
    "kept": {"default": {"method": "keep"}, "keep_dtype": "float16"},
}


@pytest.mark.parametrize("then", RECIPES)
@pytest.mark.parametrize("first", RECIPES)
def test_an_interrupted_run_goes_on_by_another_recipe(tmp_path, rng, first, then):
    w = rng.standard_normal((200, 96)).astype(np.float32)
    tensors = {"a": w, "b": w, "c": w}
    source = saved(tmp_path, tensors, ".npz")
    straight, target = tmp_path / "straight.safetensors", tmp_path / "out.safetensors"
    compress_file(source, straight, RECIPES[then])

    def stop_at(after):
        def stop(name, done, total):
            if [*tensors, ""].index(name) == after:
                raise KeyboardInterrupt

        return stop

    for after in (1, 2, 3):
        for recipe, at in ((first, after), ("4 bits", 2)):
            with pytest.raises(KeyboardInterrupt):
                compress_file(source, target, RECIPES[recipe], resume=True, progress=stop_at(at))
        compress_file(source, target, RECIPES[then], resume=True)
        assert target.read_bytes() == straight.read_bytes()


def test_a_first_one_under_another_rule_leaves_the_others_tied(tmp_path, rng):
    w = rng.standard_normal((200, 96)).astype(np.float32)
    small = tmp_path / "small.safetensors"
    source = saved(tmp_path, {"a": w, "b": w, "c": w}, ".npz")
    compress_file(source, small, RECIPE | {"skip": ["a"]})
    with store.open_store(small) as opened:
        assert [opened.info(name).same_as for name in "abc"] == [None, None, "b"]


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_old])
def test_tensors_of_torch_that_share_a_storage_or_its_checksum(tmp_path, rng, save):
    w = rng.standard_normal((200, 96)).astype(np.float32)
    save(tmp_path / "m.pt", {"a": w, "b": w, "c": w + 1})
    # Files of PyTorch before 1.6 have no checksums: there only what shares a storage is found.
    known = {"b": "a"} if save is torch_files.save else {}
    assert equal_tensors(open_checkpoint(tmp_path / "m.pt")) == known


def test_an_entry_is_forgotten_with_those_that_are_the_same(tmp_path):
    path = tmp_path / "m.safetensors"
    with store.Writer(path) as writer:
        writer.add("a", np.ones(2))
        writer.add_same("b", "a")
        writer.add("c", np.ones(3))
        writer.add_same("d", "c")
        writer.discard("a")
        writer.discard("d")
        assert list(writer) == ["c"]
    with store.open_store(path) as opened:
        assert list(opened) == ["c"]


def test_writers_refuse_what_is_no_tie(tmp_path):
    with store.Writer(tmp_path / "m.safetensors") as writer:
        writer.add("a", np.ones((2, 3)))
        writer.add_same("b", "a")
        for name, of, message in (
            ("a", "a", "names of tensors must be unique, got 'a' twice"),
            ("b", "a", "names of tensors must be unique, got 'b' twice"),
            ("c", "b", "of must be an entry that has tensors, got 'b' for 'c'"),
            ("c", "x", "of must be an entry that has tensors, got 'x' for 'c'"),
            ("", "a", "an entry's name must be text"),
            (3, "a", "an entry's name must be text"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.add_same(name, of)
        assert list(writer) == ["a", "b"]
        assert (writer.info("b").same_as, writer.info("b").nbytes) == ("a", 0)
        with pytest.raises(ValueError, match="names of tensors must be unique"):
            writer.add("b", np.ones(2))
        writer.add_same("fc.B", "a")
        with pytest.raises(ValueError, match=r"names of tensors must be unique, got 'fc\.B' twice"):
            writer.add("fc", LowRank(rank=1).compress(np.ones((2, 3))))
    with pytest.raises(ValueError, match="the writer must be open to add 'c'"):
        writer.add_same("c", "a")
    with store.open_store(tmp_path / "m.safetensors") as opened:
        assert same(opened["b"], np.ones((2, 3)))


def forged(path, change):
    """Change the index of a file and make its checksum right."""
    content = path.read_bytes()
    header = read_header(memoryview(content))
    change(header.index["entries"])
    head = header_bytes(header.tensors, header.metadata, header.index)
    path.write_bytes(head + content[header.size :])


@pytest.mark.parametrize(
    "value",
    [
        {"same_as": "c"},
        {"same_as": "b"},
        {"same_as": "d"},
        {"same_as": None},
        {"same_as": ["a"]},
        {"same_as": "a", "crc32": 1},
        {},
    ],
)
def test_hostile_ties_are_refused(tmp_path, value):
    path = tmp_path / "m.safetensors"
    with store.Writer(path) as writer:
        writer.add("a", LowRank(rank=1).compress(np.outer([1.0, 2, 3], [1, 2, 3, 4])))
        writer.add_same("b", "a")
        writer.add_same("d", "a")
    forged(path, lambda entries: entries.update(b=value))
    with pytest.raises(CorruptDataError):
        store.open_store(path)


def test_many_ties_count_as_many_tensors(tmp_path):
    """A few bytes for each name, but a whole tensor to rebuild."""
    path = tmp_path / "m.safetensors"
    B, C = np.ones((30000, 1), np.float32), np.ones((1, 1000), np.float32)
    factors = LowRankFactors(shape=(30000, 1000), dtype=B.dtype, B=B, C=C)
    with store.Writer(path) as writer:
        writer.add("a", factors)
        for i in range(20):
            writer.add_same(f"b{i}", "a")
    with pytest.raises(CorruptDataError, match="max_dense_nbytes must be at least 2520000000"):
        decompress_file(path, tmp_path / "large.safetensors")
