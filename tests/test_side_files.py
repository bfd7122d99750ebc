"""What writers leave alone: devices, sources and strangers' files; and what a journal may claim."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib

import numpy as np
import pytest
from fastfactor import CorruptDataError, compress_file, decompress_file, store
from fastfactor.cli import app as cli
from fastfactor.files.side_files import START
from fastfactor.methods import LowRank
from fastfactor.models.inspect import inspect_file
from processes import run_python

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes, links and locks")

RECIPE = {"default": {"method": "low_rank", "rank": 2}}
ENDINGS = ("journal", "partial", "whole")
STRANGE = b"somebody else's file"


@pytest.fixture
def model(tmp_path, rng):
    folder = tmp_path / "inputs"
    folder.mkdir()
    tensors = {f"w{i}": rng.standard_normal((40, 48)).astype(np.float32) for i in range(3)}
    store.save(folder / "model.safetensors", {**tensors, "bias": np.ones(4, np.float32)})
    compress_file(folder / "model.safetensors", folder / "small.safetensors", RECIPE)
    return folder


@pytest.fixture
def path(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.safetensors"


def write(path, **options):
    with store.Writer(path, **options) as writer:
        writer.add("a", np.ones(3))


def command(*words):
    def run(folder, path):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("sys.argv", ["fastfactor", *words, str(path)])
            with pytest.raises(SystemExit) as left:
                cli.main()
            if left.value.code:
                raise ValueError(left.value.code)

    return run


WRITERS = {
    "save": lambda folder, path: store.save(path, {"a": np.ones(3)}),
    "save, compact": lambda folder, path: store.save(path, {"a": np.ones(3)}, compact=True),
    "Writer": lambda folder, path: write(path),
    "Writer, resumed": lambda folder, path: write(path, resume=True),
    "compress": lambda folder, path: compress_file(folder / "model.safetensors", path, RECIPE),
    "decompress": lambda folder, path: decompress_file(folder / "small.safetensors", path),
}
REPORTS = {
    "report.txt": lambda folder, path: inspect_file(folder / "small.safetensors").save(path),
    "recipe.toml": command("recipe", "--force"),
}
WITH_SIDE_FILES = [name for name in WRITERS if not name.startswith("save")]


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", [*WRITERS, *REPORTS])
def test_a_pipe_is_not_replaced(name, link, model, path):
    run = {**WRITERS, **REPORTS}[name]
    path = path.with_name(name) if name in REPORTS else path
    pipe = path.with_name("pipe")
    os.mkfifo(pipe if link else path)
    if link:
        path.symlink_to(pipe)
    with pytest.raises(ValueError, match=r"must be a regular file or a new one|^1$"):
        run(model, path)
    assert path.is_fifo()
    assert path.is_symlink() == link
    assert len(os.listdir(path.parent)) == 1 + link


def alias(source, other, how):
    {"name": shutil.move, "symlink": os.symlink, "hard link": os.link}[how](source, other)


@pytest.mark.parametrize("how", ["name", "symlink", "hard link"])
@pytest.mark.parametrize("ending", ["", *ENDINGS])
@pytest.mark.parametrize("task", ["compress", "decompress", "importance"])
def test_a_source_is_not_written(task, ending, how, model, path):
    """Neither as the target nor as a side file of it."""
    name = "small.safetensors" if task == "decompress" else "model.safetensors"
    source = path.with_name(f"{path.name}.{ending}" if ending else path.name)
    content = (model / name).read_bytes()
    shutil.copy(model / name, model / "copy")
    alias(model / "copy", source, how)
    read = source if how == "name" else model / "copy"
    weights = {"importance": read}
    run = {
        "compress": lambda: compress_file(read, path, RECIPE),
        "decompress": lambda: decompress_file(read, path),
        "importance": lambda: compress_file(model / "model.safetensors", path, RECIPE, **weights),
    }[task]
    with pytest.raises(ValueError, match="target must not be"):
        run()
    assert source.read_bytes() == content
    assert os.listdir(path.parent) == [source.name]


def make_strange(place, kind, elsewhere):
    elsewhere.write_bytes(STRANGE)
    if kind == "file":
        place.write_bytes(STRANGE)
    elif kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "link to nothing":
        place.symlink_to(elsewhere.with_name("nothing"))
    elif kind == "second name":
        place.hardlink_to(elsewhere)
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)


KINDS = ("file", "link", "link to nothing", "second name", "folder", "pipe")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", WITH_SIDE_FILES)
def test_a_strangers_file_is_left_alone(name, ending, kind, model, path):
    place, elsewhere = path.with_name(f"{path.name}.{ending}"), path.with_name("elsewhere")
    make_strange(place, kind, elsewhere)
    before = os.lstat(place)
    with pytest.raises(FileExistsError, match=f"{place.name} must be absent or what an earlier"):
        WRITERS[name](model, path)
    assert os.lstat(place)[:2] == before[:2]
    assert elsewhere.read_bytes() == STRANGE
    if kind in ("file", "link", "second name"):
        assert place.read_bytes() == STRANGE
    assert sorted(os.listdir(path.parent)) == sorted(["elsewhere", place.name])
    store.save(path, {"a": np.ones(3)})  # which has no such side files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["journal", "partial"])
def test_what_replaced_a_side_file_is_not_written_to(ending, kind, path):
    """As one who may write to the folder could do while no writer runs."""
    interrupt(path)
    place, elsewhere = path.with_name(f"{path.name}.{ending}"), path.with_name("elsewhere")
    place.unlink()
    make_strange(place, kind, elsewhere)
    with contextlib.suppress(OSError):
        write(path, resume=True)
    assert elsewhere.read_bytes() == STRANGE


def interrupt(path, **entries):
    """Leave side files with these entries."""
    with contextlib.suppress(KeyboardInterrupt), store.Writer(path, resume=True) as writer:
        for name, value in (entries or {"a": np.ones(3)}).items():
            writer.add(name, value)
        raise KeyboardInterrupt


SECOND = """
import sys, numpy as np
from fastfactor import store
try:
    store.Writer(sys.argv[1], resume=sys.argv[2] == "True")
except BlockingIOError as error:
    print(error)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_writer_is_refused(path, resume):
    with store.Writer(path, job="first") as writer:
        writer.add("a", np.ones(3))
        with pytest.raises(BlockingIOError, match="must be written by one writer at a time"):
            store.Writer(path, job="second", resume=resume)
        said = run_python(SECOND, path, resume)
        assert f"{path.name} must be written by one writer at a time" in said.stdout
        writer.add("b", np.zeros(2))
    with store.open_store(path) as opened:
        assert list(opened) == ["a", "b"]
    write(path, resume=resume)
    assert os.listdir(path.parent) == [path.name]


def test_a_lock_ends_with_its_process(path):
    code = """
        import os, signal, sys, numpy as np
        from fastfactor import store
        store.Writer(sys.argv[1], resume=True).add("a", np.ones(3))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(code, path).returncode == -9
    with store.Writer(path, resume=True) as writer:
        assert list(writer) == ["a"]


# --- journals


def line(value):
    text = (value if isinstance(value, str) else json.dumps(value)).encode() + b"\n"
    return b"%08x " % zlib.crc32(text) + text


def journal_of(path):
    return path.with_name(f"{path.name}.journal")


def plain(name="a", **changes):
    data = np.ones(3).tobytes()
    piece = {"name": name, "code": "F64", "shape": [3], "begin": len(START), "nbytes": 24}
    pieces = [{**piece, "crc32": zlib.crc32(data), **changes}]
    return {"entry": {"name": name}, "pieces": pieces, "key": ""}


HOSTILE = {
    "null": None,
    "nothing": {},
    "a number": 7,
    "a list": [[], []],
    "no pieces": {**plain(), "pieces": []},
    "pieces that are none": {**plain(), "pieces": 5},
    "no name": {**plain(), "entry": {}},
    "a name that is none": {**plain(), "entry": {"name": ["a"]}},
    "another name": {**plain(), "entry": {"name": "b"}},
    "an entry that is none": {**plain(), "entry": "a"},
    "parts that are none": {**plain(), "entry": {"name": "a", "tensors": 3}},
    "a layout without factors": {**plain(), "entry": {"name": "a", "layout": {}}},
    "an original that is none": {**plain(), "entry": {"name": "a", "dtype": 3}},
    "an original of another kind": {**plain(), "entry": {"name": "a", "dtype": "int8"}},
    "a key that is none": {**plain(), "key": None},
    "no key": {name: value for name, value in plain().items() if name != "key"},
    "too deep": "[" * 200_000,
    "deep pieces": '{"entry": {"name": "a"}, "key": "", "pieces": ' + "[" * 2000 + "]" * 2000 + "}",
    "not JSON": "{",
    "twice the same": '{"entry": {"name": "a"}, "entry": {"name": "a"}, "pieces": [], "key": ""}',
    "a dtype that is none": plain(code="f64"),
    "a dtype of another kind": plain(code=["F64"]),
    "another dtype": plain(code="F32"),
    "another shape": plain(shape=[4]),
    "a huge shape": plain(shape=[2**40, 2**40]),
    "a negative shape": plain(shape=[-3, -1]),
    "a shape that is none": plain(shape=3),
    "before the start": plain(begin=-1),
    "far beyond the end": plain(begin=2**62),
    "a place of another kind": plain(begin="0"),
    "another size": plain(nbytes=23),
    "a negative size": plain(nbytes=-24),
    "a huge size": plain(nbytes=2**62),
    "another checksum": plain(crc32=1),
    "a checksum of another kind": plain(crc32=None),
    "something more": plain(more=1),
    "the same as nothing": {"entry": {"name": "a", "same_as": "b"}, "pieces": [], "key": ""},
    "the same as itself": {"entry": {"name": "a", "same_as": "a"}, "pieces": [], "key": ""},
    "the same as a number": {"entry": {"name": "a", "same_as": 3}, "pieces": [], "key": ""},
    "the same, with pieces": {**plain(), "entry": {"name": "a", "same_as": "b"}},
    "a lone surrogate": '{"entry": {"name": "\\ud800"}, "pieces": [], "key": ""}',
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_line_is_not_taken_up(said, path):
    interrupt(path)
    head = journal_of(path).read_bytes().splitlines(keepends=True)[0]
    journal_of(path).write_bytes(head + line(plain()))
    with store.Writer(path, resume=True) as writer:
        assert list(writer) == ["a"]  # what is right, in the way that these lines are written
        assert writer.info("a").shape == (3,)
    interrupt(path)
    journal_of(path).write_bytes(head + line(said))
    with store.Writer(path, resume=True) as writer:
        assert list(writer) == []
        with pytest.raises(KeyError, match="must be that of a written entry"):
            writer.info("a")
        writer.add("a", np.ones(3))
    assert os.listdir(path.parent) == [path.name]


def test_a_journal_cannot_make_an_entry_the_same_as_itself(path):
    interrupt(path, a=np.ones(3))
    with open(journal_of(path), "ab") as journal:
        journal.write(line({"entry": {"name": "a", "same_as": "a"}, "pieces": [], "key": ""}))
    with store.Writer(path, resume=True) as writer:
        assert writer.info("a").same_as is None


@pytest.mark.parametrize("said", [None, 7, [], {"job": 3}, {"job": None}, "[" * 200_000])
def test_a_hostile_first_line_is_another_job(said, path, model):
    interrupt(path)
    journal_of(path).write_bytes(line(said))
    compress_file(model / "model.safetensors", path, RECIPE, resume=True)
    assert os.listdir(path.parent) == [path.name]


def changed_entry(path, key, value):
    head, *lines = journal_of(path).read_bytes().splitlines(keepends=True)
    said = json.loads(lines[0][9:])
    said["entry"][key] = value
    journal_of(path).write_bytes(head + line(said))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [6, 14]),
        ("shape", [2**40, 0]),
        ("shape", []),
        ("shape", "66"),
        ("kind", "prune"),
        ("kind", "none"),
        ("kind", 4),
        ("dtype", "int8"),
        ("config", None),
        ("tensors", ["C", "B"]),
        ("tensors", ["B"]),
        ("name", "other"),
        ("name", ""),
        ("more", 1),
        ("layout", None),
        ("layout", {"axes": [1, 1], "matrix": [6, 15]}),
        ("layout", {"axes": [0, 1], "matrix": [15, 6]}),
    ],
)
def test_factors_that_do_not_fit_what_is_said_are_not_taken_up(key, value, path, rng):
    factors = LowRank(rank=2).compress(rng.standard_normal((6, 15)))
    interrupt(path, fc=factors)
    changed_entry(path, key, value)
    with store.Writer(path, resume=True) as writer:
        assert list(writer) == []


@pytest.mark.parametrize("lie", [[40, 2, 24], [40, 48, 1]])
def test_a_lying_shape_does_not_reach_the_target(lie, model, path):
    """One that the factors have as a matrix, but not the source's tensor."""

    def stop(name, done, total):
        if name == "w1":
            raise KeyboardInterrupt

    source = model / "model.safetensors"
    with pytest.raises(KeyboardInterrupt):
        compress_file(source, path, RECIPE, resume=True, progress=stop)
    changed_entry(path, "shape", lie)
    path.write_bytes(b"the old file")
    with pytest.raises(CorruptDataError, match=r"must only have tensors of the source, got 'w0'"):
        compress_file(source, path, RECIPE, resume=True)
    assert path.read_bytes() == b"the old file"
    compress_file(source, path, RECIPE)
    assert path.read_bytes() == (model / "small.safetensors").read_bytes()


def test_a_journal_that_is_none_is_not_read_whole(path):
    with open(journal_of(path), "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(FileExistsError, match="must be absent"):
        write(path, resume=True)
    assert journal_of(path).stat().st_size == 1 << 33


@pytest.mark.parametrize("how", ["name", "symlink", "hard link"])
def test_a_report_is_not_written_to_a_source(how, model, tmp_path, monkeypatch, capsys):
    index = model / "model.safetensors.index.json"
    weight_map = dict.fromkeys(("w0", "w1", "w2", "bias"), "model.safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}))
    report = index if how == "name" else tmp_path / "report.json"
    if how != "name":
        alias(index, report, how)
    for source in (index, model) if how == "name" else (index,):
        words = ["inspect", str(source), "--report", str(report)]
        monkeypatch.setattr("sys.argv", ["fastfactor", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        assert "must not be a source" in capsys.readouterr().err
    assert json.loads(index.read_text()) == {"weight_map": weight_map}


def test_a_recipe_replaces_a_file_only_when_told(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(STRANGE)
    with pytest.raises(ValueError, match="1"):
        command("recipe")(None, path)
    assert path.read_bytes() == STRANGE
    command("recipe", "--force")(None, path)
    assert b"[default]" in path.read_bytes()
