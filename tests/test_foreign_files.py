"""Files of other libraries: read where they hold tensors, else named with what to do."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_files as torch_made
from fastfactor import CorruptDataError, compress_file, decompress_file, store
from fastfactor.files.checkpoint import is_compressed, open_checkpoint
from fastfactor.models.compare import compare_files
from fastfactor.models.inspect import inspect_file
from fastfactor.models.recipe import read_recipe
from models import RECIPE, same, shard
from safetensors.numpy import save_file

TYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "|u1", "|b1", "<c8", ml_dtypes.bfloat16)


@pytest.fixture
def arrays(rng):
    found = {f"t{np.dtype(t).name}": (rng.random((4, 6)) * 9).astype(t) for t in TYPES}
    return {**found, "scalar": np.float32(3).reshape(()), "empty": np.zeros((0, 3), np.float32)}


# --- PyTorch


@pytest.mark.parametrize("save", [torch_made.save, torch_made.save_old])
def test_tensors_of_torch_are_what_they_were(save, arrays, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    save(path, arrays)
    opened = open_checkpoint(path)
    assert list(opened) == list(arrays)
    for name, array in arrays.items():
        assert opened.tensors[name].shape == array.shape
        assert same(opened[name], array)
    assert not is_compressed(path)
    compress_file(path, tmp_path / "small.safetensors", RECIPE)
    assert compare_files(path, tmp_path / "small.safetensors").equal
    assert inspect_file(path, verify=True).totals["n_tensors"] == len(arrays)


def test_views_of_a_storage(tmp_path):
    """Transposed, cut out, shared and repeated, as PyTorch stores views."""
    data = np.arange(24, dtype=np.float32)
    views = {
        "transposed": data.reshape(4, 6).T,
        "cut": data.reshape(4, 6)[1:3, 2:4],
        "all": data.reshape(2, 3, 4),
        "repeated": np.broadcast_to(data[3:4], (5,)),
    }
    body = {}
    for name, view in views.items():
        offset = (view.ctypes.data - data.ctypes.data) // 4
        strides = [step // 4 for step in view.strides]
        body[name] = torch_made.tensor(
            "FloatStorage", "0", 24, offset=offset, shape=view.shape, strides=strides
        )
    path = tmp_path / "views.pt"
    torch_made.write_archive(path, torch_made.mapping(body), {"0": data.tobytes()})
    opened = open_checkpoint(path)
    for name, view in views.items():
        np.testing.assert_array_equal(opened[name], view)


def test_nested_containers_have_joined_names_and_the_rest_is_said(tmp_path):
    one = torch_made.tensor("FloatStorage", "0", 2, shape=(2,), strides=(1,))
    inner = torch_made.mapping({"w": one})
    listed = b"(" + one + b"l"
    body = torch_made.mapping({"model": inner, "list": listed, "epoch": torch_made.integer(3)})
    path = tmp_path / "checkpoint.pth"
    torch_made.write_archive(path, body, {"0": np.ones(2, np.float32).tobytes()})
    with pytest.warns(UserWarning, match="1 values that are no tensors and are left out: 'epoch'"):
        opened = open_checkpoint(path)
    assert list(opened) == ["model.w", "list.0"]


def test_a_parameter_is_its_tensor(tmp_path):
    one = torch_made.tensor("FloatStorage", "0", 2, shape=(2,), strides=(1,))
    wrapped = torch_made.called(
        "torch._utils", "_rebuild_parameter", b"(" + one + b"\x88" + torch_made.ordered() + b"t"
    )
    path = tmp_path / "p.pt"
    torch_made.write_archive(
        path, torch_made.mapping({"w": wrapped}), {"0": np.ones(2, np.float32).tobytes()}
    )
    np.testing.assert_array_equal(open_checkpoint(path)["w"], np.ones(2))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"),
        ("collections", "Counter"),
        ("collections.OrderedDict", "fromkeys"),
        ("fastfactor.files.torch_file", "TorchFile"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_no_code_of_a_pickle_is_executed(module, name, old, tmp_path):
    path, trace = tmp_path / "m.pt", tmp_path / "trace"
    argument = b"(" + torch_made.text(f"touch {trace}") + b"t"
    body = torch_made.called(module, name, argument)
    if old:
        path.write_bytes(torch_made.PROTOCOL + body + b".")
    else:
        torch_made.write_archive(path, body, {})
    with pytest.raises(ValueError, match=f"asks for {module}.{name}, which is not loaded"):
        open_checkpoint(path)
    assert not trace.exists()


def attributes_set(value, state):
    """What a pickle does to set attributes of an object."""
    pairs = b"".join(torch_made.text(key) + torch_made.text("x") for key in state)
    return value + b"N}(" + pairs + b"u\x86b"


GOOD = torch_made.tensor("FloatStorage", "0", 6, shape=(2, 3), strides=(3, 1))


def one(**changes):
    described = {"offset": 0, "shape": (2, 3), "strides": (3, 1), **changes}
    n = described.pop("n", 6)
    return torch_made.mapping({"w": torch_made.tensor("FloatStorage", "0", n, **described)})


def laughs():
    """Lists of lists that are shared: few bytes, endless leaves."""
    body = b"]q\x00"
    for level in range(40):
        body += b"](" + bytes([ord("h"), level]) * 9 + b"eq" + bytes([level + 1])
    return body


HOSTILE = {
    "beyond the storage": one(offset=1),
    "strides beyond": one(strides=(6, 1)),
    "a huge shape": one(shape=(2**40, 2**40), strides=(0, 0)),
    "a long repeat": one(shape=(2**30,), strides=(0,)),
    "negative": one(shape=(-1, 3)),
    "negative strides": one(strides=(-3, 1)),
    "fewer strides": one(strides=(3,)),
    "more than the file has": one(n=7, shape=(7,), strides=(1,)),
    "too many axes": one(shape=(1,) * 40, strides=(1,) * 40),
    "a storage alone": torch_made.mapping({"w": torch_made.storage("FloatStorage", "0", 6)}),
    "attributes of a function": attributes_set(
        b"ctorch._utils\n_rebuild_tensor_v2\n", ["__code__"]
    ),
    "attributes of a class": attributes_set(b"ccollections\nOrderedDict\n", ["get"]),
    "attributes of a name": attributes_set(b"ctorch\nFloatStorage\n", ["code"]),
    "no tensor": torch_made.mapping({"w": torch_made.integer(3)}),
    "a missing storage": torch_made.mapping(
        {"w": torch_made.tensor("FloatStorage", "9", 6, shape=(6,), strides=(1,))}
    ),
    "a name of a path": torch_made.mapping(
        {"w": torch_made.tensor("FloatStorage", "../0", 6, shape=(6,), strides=(1,))}
    ),
    "nothing": b"N",
    "cut": GOOD[:-5],
    "not a pickle": b"\xff\xff",
    "a huge number of an object": b"]r\xff\xff\xff\x7f.",
    "a huge text": b"X\xff\xff\xff\x7fa.",
    "a huge integer": b"\x8b\xff\xff\xff\x7fa.",
    "in itself": b"]q\x00h\x00a",
    "laughs": laughs(),
    "deep": b"]" * 100_000 + b"a" * 99_999,
    "deep tuples as a key": b"}" + b")" + b"\x85" * 50_000 + b"Ns",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pickle_is_refused(body, tmp_path):
    path = tmp_path / "m.pt"
    data = {"0": np.ones(6, np.float32).tobytes()}
    torch_made.write_archive(path, torch_made.mapping({"w": GOOD}), data)
    np.testing.assert_array_equal(open_checkpoint(path)["w"], np.ones((2, 3)))
    torch_made.write_archive(path, body, data)

    def read():
        opened = open_checkpoint(path)
        for name in opened:
            opened[name]

    with pytest.raises(ValueError, match=r"m\.pt|containers|names of tensors"):
        read()


@pytest.mark.parametrize("save", [torch_made.save, torch_made.save_old])
def test_any_cut_of_a_file_of_torch_is_refused(save, tmp_path):
    path = tmp_path / "m.pt"
    save(path, {"w": np.arange(6, dtype=np.float32), "b": np.ones(2)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"m\.pt"):
            open_checkpoint(path)


@pytest.mark.filterwarnings("ignore")  # what a changed byte makes of the names
@pytest.mark.parametrize("save", [torch_made.save, torch_made.save_old])
def test_any_changed_byte_of_a_file_of_torch_is_read_or_refused(save, tmp_path):
    path = tmp_path / "m.pt"
    save(path, {"w": np.arange(6, dtype=np.float32)})
    content = path.read_bytes()
    refused = 0
    for at in range(len(content)):
        for flip in (1, 0x20, 0x80):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                opened = open_checkpoint(path)
                for name in opened:
                    opened[name]
            except (ValueError, TypeError):
                refused += 1
    assert refused > len(content)


@pytest.mark.framework
@pytest.mark.filterwarnings("ignore")
def test_what_torch_itself_saves_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "w": weight,
        "t": weight.T,
        "tied": weight,
        "p": torch.nn.Parameter(weight[1:]),
        "h": weight.bfloat16(),
        "u": weight.to(torch.uint16),
        "f8": weight.to(torch.float8_e4m3fn),
        "n": torch.tensor(3),
    }
    for old in (False, True):
        path = tmp_path / f"{old}.pt"
        taken = {k: v for k, v in state.items() if not old or k not in ("u", "f8")}
        torch.save(taken, path, _use_new_zipfile_serialization=not old)
        opened = open_checkpoint(path)
        assert list(opened) == list(taken)
        for name, value in taken.items():
            raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            assert opened[name].tobytes() == raw
            assert opened[name].shape == tuple(value.shape)


# --- NumPy


def test_an_npy_file_is_a_model_of_one_tensor(tmp_path, rng):
    W = rng.standard_normal((64, 40)).astype(np.float32)
    for name, array in (("w", W), ("f", np.asfortranarray(W)), ("big", W.astype(">f4"))):
        path = tmp_path / f"{name}.npy"
        np.save(path, array)
        opened = open_checkpoint(path)
        assert list(opened) == [name]
        np.testing.assert_array_equal(opened[name], W)
        assert not is_compressed(path)
    report = compress_file(tmp_path / "w.npy", tmp_path / "w.safetensors", RECIPE)
    assert [row.method for row in report.rows] == ["codebook"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 3], object),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, np.complex128),
    ],
    ids=lambda array: array.dtype.name,
)
@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_an_entry_that_safetensors_cannot_hold_is_named(array, ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    np.savez(path, w=np.ones(3), names=array) if ending == "npz" else np.save(path, array)
    with pytest.raises(TypeError, match="must have a dtype that safetensors can hold, got") as e:
        open_checkpoint(path)
    assert "save it apart" in str(e.value)
    assert ("'names.npy'" in str(e.value)) == (ending == "npz")


def test_a_name_twice_in_an_archive_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=np.ones(3))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w.npy", archive.read("w.npy"))
    with pytest.raises(CorruptDataError, match=r"must hold each name once, got 'w\.npy' twice"):
        open_checkpoint(path)


# --- formats that are not read


def keras(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")


FOREIGN = {
    "model.gguf": (b"GGUF\x03\0\0\0" + bytes(50), "GGUF"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x05" + bytes(50), "ONNX"),
    "weights.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "model.keras": (keras, "a Keras model"),
    "model.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    ),
    "page.safetensors": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
    "other.bin": (b"\n<html>\n", "an HTML page"),
    "model.tar.gz": (b"\x1f\x8b\x08" + bytes(50), "a compressed archive"),
    "model.pkl": (pickle.dumps({"w": [1.0, 2.0]}, protocol=4), "a pickle of other objects"),
    "arrays.pkl": (pickle.dumps({"w": np.ones(3)}, protocol=2), "asks for numpy"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_format_is_named_with_what_to_do(name, tmp_path):
    content, expected = FOREIGN[name]
    path = tmp_path / name
    content(path) if callable(content) else path.write_bytes(content)
    for call in (
        lambda: compress_file(path, tmp_path / "out.safetensors", RECIPE),
        lambda: decompress_file(path, tmp_path / "out.safetensors"),
        lambda: compare_files(path, path),
        lambda: inspect_file(path),
        lambda: store.open_store(path),
    ):
        with pytest.raises(ValueError, match=r"must ") as caught:
            call()
        if expected in str(caught.value):
            assert ";" in str(caught.value)
            assert str(path) in str(caught.value)
        else:  # a pickle, which a store does not look into
            assert "got the format torch" in str(caught.value)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("begin", [b"GGUF", b"PK\3\4", b"\x80\x02ab", b"<htm", b"\x08\x07:\0"])
def test_a_long_header_is_not_taken_for_another_format(begin, tmp_path):
    """The length of a safetensors header may be any number; then comes its brace."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(begin + bytes(4) + b"{}" + bytes(50))
    with pytest.raises(CorruptDataError, match="the header must have between"):
        open_checkpoint(path)


# --- doors


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
@pytest.mark.parametrize(
    "name",
    ["a.npz", "a.npy", "a.pt", "a.safetensors", "a.index.json", "a.toml", "folder", "shard"],
)
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path, rng):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        os.mkfifo(path / "model.safetensors.index.json")
    elif name == "shard":
        path = shard(tmp_path, {f"w{i}": np.ones(3) for i in range(3)})
        os.unlink(tmp_path / "model-00002-of-00003.safetensors")
        os.mkfifo(tmp_path / "model-00002-of-00003.safetensors")
    else:
        os.mkfifo(path)
    with pytest.raises(CorruptDataError, match="must be a regular file, got a pipe or device"):
        read_recipe(path) if name == "a.toml" else open_checkpoint(path)
    if name in ("a.npz", "a.safetensors"):
        with pytest.raises(CorruptDataError, match="must be a regular file"):
            store.open_store(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_json_is_utf_8(encoding, tmp_path):
    header = '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "m.safetensors"
    for encoded, right in ((header.encode(encoding), False), (header.encode(), True)):
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(4))
        if right:
            assert open_checkpoint(path)["w"] == 0
        else:
            with pytest.raises(CorruptDataError, match="must be JSON"):
                open_checkpoint(path)
    index = tmp_path / "m.safetensors.index.json"
    index.write_bytes(json.dumps({"weight_map": {"w": "m.safetensors"}}).encode(encoding))
    with pytest.raises(CorruptDataError, match="must be JSON"):
        open_checkpoint(index)


def test_a_tensor_that_the_index_lacks_is_read_with_a_warning(tmp_path):
    index = shard(tmp_path, {f"w{i}": np.full(3, i) for i in range(6)})
    content = json.loads(index.read_text())
    for name in ("w1", "w5"):
        del content["weight_map"][name]
    index.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="does not list 2 of the tensors .* 'w1', 'w5'"):
        opened = open_checkpoint(index)
    assert sorted(opened) == [f"w{i}" for i in range(6)]
    assert opened["w5"].tolist() == [5, 5, 5]
    os.unlink(tmp_path / content["weight_map"]["w0"])
    with pytest.raises(FileNotFoundError):
        open_checkpoint(index)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    index = shard(tmp_path, {f"w{i}": np.full(3, i) for i in range(3)})
    save_file({"w1": np.ones(3), "w0": np.ones(3)}, tmp_path / "model-00001-of-00003.safetensors")
    with pytest.raises(CorruptDataError, match="must assign tensor 'w1' to"):
        open_checkpoint(index)
