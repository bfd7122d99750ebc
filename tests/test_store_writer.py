"""Files written entry by entry: their bytes, their memory, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from fastfactor import CorruptDataError, store
from fastfactor.methods import LowRank


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


@pytest.fixture
def entries(rng):
    return {
        "codes": np.arange(7, dtype=np.uint8),
        "fc": LowRank(rank=2).compress(rng.standard_normal((6, 15)).astype(np.float32)),
        "empty": np.zeros((0, 4), np.int16),
        "bias": rng.standard_normal(6),
    }


SHAPES = {"fc": (6, 5, 3)}


def write(path, entries, **options):
    with store.Writer(path, **options) as writer:
        for name, value in entries.items():
            if name not in writer:
                writer.add(name, value, shape=SHAPES.get(name))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_bytes_are_those_of_save(path, entries):
    store.save(path, entries, metadata={"a": "b"}, shapes=SHAPES)
    expected = path.read_bytes()
    write(path, entries, metadata={"a": "b"})
    assert path.read_bytes() == expected
    assert names_in(path.parent) == [path.name]


def test_nothing_is_a_file_too(path):
    write(path, {})
    with store.open_store(path) as opened:
        assert list(opened) == []
        opened.verify()


def test_metadata_may_be_said_last(path, entries):
    with store.Writer(path, metadata={"a": "1"}) as writer:
        writer.add("bias", entries["bias"])
        writer.metadata["b"] = "2"
    with store.open_store(path) as opened:
        assert opened.metadata == {"a": "1", "b": "2"}


def test_one_entry_is_held_at_a_time(path):
    size = 4_000_000
    tracemalloc.start()
    with store.Writer(path) as writer:
        for number in range(8):
            writer.add(str(number), np.full(size // 4, number, np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size
    with store.open_store(path) as opened:
        opened.verify()
        assert opened["7"][-1] == 7


def test_the_old_file_stays_until_the_new_one_is_whole(path, entries, monkeypatch):
    store.save(path, {"old": np.ones(3)})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, function, fail)
            for attempt in (store.save, write):
                with pytest.raises(OSError, match="no space left"):
                    attempt(path, entries)
        assert path.read_bytes() == before
        assert names_in(path.parent) == [path.name]
    interrupted(path, entries, after=2, resume=False)
    assert path.read_bytes() == before
    assert names_in(path.parent) == [path.name]


def test_a_link_stays_a_link(path, entries):
    link = path.with_name("link.safetensors")
    store.save(path, {"old": np.ones(3)})
    link.symlink_to(path)
    for attempt in (store.save, write):
        attempt(link, entries)
        assert link.is_symlink()
        with store.open_store(path) as opened:
            assert list(opened) == list(entries)


def test_files_may_be_read_by_whom_the_umask_allows(path, entries):
    before = os.umask(0o027)
    try:
        for attempt in (store.save, write):
            attempt(path, entries)
            assert path.stat().st_mode & 0o777 == 0o640
            path.unlink()
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="needs bits of permission")
@pytest.mark.parametrize("mode", [0o600, 0o444, 0o664])
def test_who_may_read_the_old_file_may_read_the_new_one(path, entries, mode):
    for attempt in (store.save, write):
        store.save(path, {"old": np.ones(3)})
        path.chmod(mode)
        if attempt is write:
            interrupted(path, entries, after=1)
            path.with_name(f"{path.name}.whole").write_bytes(b"left by a kill")
            path.with_name(f"{path.name}.whole").chmod(0o444)
        attempt(path, entries)
        assert path.stat().st_mode & 0o777 == mode
        assert names_in(path.parent) == [path.name]
        path.unlink()


@pytest.mark.skipif(os.name != "posix", reason="needs limits of processes")
def test_a_full_disk_leaves_the_old_file(path):
    store.save(path, {"old": np.ones(3)})
    before = path.read_bytes()
    for attempt in ("store.save(path, x)", "w = store.Writer(path); w.add('x', x['x']); w.close()"):
        code = (
            "import resource, signal, sys, numpy as np; from fastfactor import store\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "path, x = sys.argv[1], {'x': np.ones(20_000)}\n" + attempt
        )
        ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert "OSError: [Errno 27]" in ended.stderr
        assert path.read_bytes() == before


def test_an_entry_that_is_refused_leaves_no_trace(path, entries):
    store.save(path, entries, shapes=SHAPES)
    expected = path.read_bytes()
    with store.Writer(path) as writer:
        for name, value in entries.items():
            writer.add(name, value, shape=SHAPES.get(name))
            with pytest.raises(ValueError, match=f"names of tensors must be unique, got '{name}"):
                writer.add(name, value, shape=SHAPES.get(name))
            with pytest.raises(TypeError, match="must be Factors or an array"):
                writer.add("other", 3)
        with pytest.raises(ValueError, match=r"got 'fc.B' twice"):
            writer.add("fc.B", np.ones(2))
        assert list(writer) == list(entries)
    with pytest.raises(ValueError, match="must be open to add 'late', got a closed writer"):
        writer.add("late", np.ones(2))
    writer.close()
    assert path.read_bytes() == expected


# --- after a kill


class Killed(BaseException):
    """What ends a run at a place of the test's choice."""


def interrupted(path, entries, *, after, resume=True, **options):
    def run():
        with store.Writer(path, resume=resume, **options) as writer:
            for number, (name, value) in enumerate(entries.items()):
                if number == after:
                    raise Killed
                writer.add(name, value, shape=SHAPES.get(name))

    with pytest.raises(Killed):
        run()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_run_is_taken_up_where_it_ended(path, entries, after):
    store.save(path, entries, shapes=SHAPES)
    expected = path.read_bytes()
    path.unlink()
    interrupted(path, entries, after=after)
    assert names_in(path.parent) == [f"{path.name}.journal", f"{path.name}.partial"]
    with store.Writer(path, resume=True) as writer:
        assert list(writer) == list(entries)[:after]
        for name in list(entries)[after:]:
            writer.add(name, entries[name], shape=SHAPES.get(name))
    assert path.read_bytes() == expected
    assert names_in(path.parent) == [path.name]


def test_any_cut_of_what_was_left_is_taken_up(path, entries):
    """As if the disk had kept that much of either file, and no more."""
    store.save(path, entries, shapes=SHAPES)
    expected = path.read_bytes()
    interrupted(path, entries, after=3)
    sides = [path.with_name(f"{path.name}.{ending}") for ending in ("journal", "partial")]
    whole = [side.read_bytes() for side in sides]
    for number, content in enumerate(whole):
        for length in range(0, len(content), 3):
            for side, data in zip(sides, whole, strict=True):
                side.write_bytes(data)
            sides[number].write_bytes(content[:length])
            write(path, entries, resume=True)
            assert path.read_bytes() == expected


def test_any_changed_byte_of_what_was_left_is_noticed(path, entries):
    store.save(path, entries, shapes=SHAPES)
    expected = path.read_bytes()
    interrupted(path, entries, after=3)
    sides = [path.with_name(f"{path.name}.{ending}") for ending in ("journal", "partial")]
    whole = [side.read_bytes() for side in sides]
    for number, content in enumerate(whole):
        for at in range(0, len(content), 5):
            for side, data in zip(sides, whole, strict=True):
                side.write_bytes(data)
            sides[number].write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            write(path, entries, resume=True)
            assert path.read_bytes() == expected


def test_another_job_is_not_taken_up(path, entries):
    interrupted(path, entries, after=2, job="rank 2")
    with store.Writer(path, resume=True, job="rank 3") as writer:
        assert list(writer) == []
    interrupted(path, entries, after=2, job="rank 2")
    with store.Writer(path, job="rank 2") as writer:
        assert list(writer) == []


def test_side_files_that_change_while_they_are_written_are_noticed(path, entries):
    with store.Writer(path) as writer:
        writer.add("bias", entries["bias"])
        with open(f"{path}.partial", "r+b") as side:
            side.seek(-1, os.SEEK_END)
            side.write(b"\7")
        with pytest.raises(CorruptDataError, match="must hold tensor 'bias' as it was written"):
            writer.close()
        with open(f"{path}.partial", "r+b") as side:
            side.seek(-1, os.SEEK_END)
            side.write(entries["bias"].tobytes()[-1:])
    with store.open_store(path) as opened:
        np.testing.assert_array_equal(opened["bias"], entries["bias"])


RUN = """
import sys
import numpy as np
from fastfactor import store
path = sys.argv[1]
print("ready", flush=True)
while True:
    with store.Writer(path, resume=True) as writer:
        for number in range(20):
            if str(number) not in writer:
                writer.add(str(number), np.full(20_000, number, np.float32))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a signal that cannot be caught")
def test_a_process_may_be_killed_at_any_moment(path, rng):
    content = {str(number): np.full(20_000, number, np.float32) for number in range(20)}
    store.save(path, content)
    expected = path.read_bytes()
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", RUN, path], stdout=subprocess.PIPE)
        with process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(float(rng.uniform(0, 0.1)))
            process.send_signal(signal.SIGKILL)
        assert path.read_bytes() == expected
    write(path, content, resume=True)
    assert path.read_bytes() == expected
    assert names_in(path.parent) == [path.name]
