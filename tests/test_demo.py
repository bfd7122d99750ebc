"""The demonstration, recomputed by other means: NumPy on the dense tensors that its files hold."""

from __future__ import annotations

import hashlib
import inspect
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from fastfactor import decompress_file, methods, store
from fastfactor.cli import app as cli
from fastfactor.demo import run as demo
from fastfactor.demo.network import DenseLayer, Network
from fastfactor.methods import ConvMethod, Factors, Method
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

DATA = resources.files("fastfactor.demo") / "data"
RESULTS = Path(__file__).parents[1] / "bench/results"
NAMES = [demo.DENSE, *demo.FORMS]
# Fast ones, a kernel each.
FEW_THREADS = ("dictionary", "codebook, vectors", "pruned + codebook", "deep compression")


@pytest.fixture(scope="module")
def dense():
    return demo.load_model()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the demonstration reports, and the files that it wrote, by form."""
    folder, paths = tmp_path_factory.mktemp("demo"), {}
    steps = []
    save = Network.save

    def save_twice(network, path, **options):
        save(network, path, **options)
        paths[NAMES[len(paths)]] = kept = folder / Path(path).name
        kept.write_bytes(Path(path).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "save", save_twice)
        rows = demo.run_demo(1, progress=lambda *step: steps.append(step))
    assert steps == [(name, at, len(NAMES)) for at, name in enumerate([*NAMES, ""])]
    return {row.method: row for row in rows}, paths


@pytest.fixture(scope="module")
def rows(ran):
    return ran[0]


@pytest.fixture(scope="module")
def paths(ran):
    return ran[1]


@pytest.fixture(scope="module")
def rebuilt(paths, tmp_path_factory):
    """The tensors of each form's file as safetensors' own reader gives them, decompressed."""
    target = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    found = {}
    for name, path in paths.items():
        decompress_file(path, target)
        found[name] = load_file(target)
    return found


def forward(tensors, x):
    for name in ("fc1", "fc2", "fc3"):
        x = x @ tensors[f"{name}.weight"].astype(np.float64).T + tensors[f"{name}.bias"]
        x = x if name == "fc3" else np.maximum(x, 0)
    return x


# What is packaged


def test_packaged_files_are_those_that_were_written():
    lines = (DATA / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(sums) == {"lenet-300-100.safetensors", "mnist-test-1000.npz"}
    for name, digest in sums.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("name", "limit"), [("lenet-300-100.safetensors", 1_100_000), ("mnist-test-1000.npz", 250_000)]
)
def test_packaged_files_are_small(name, limit):
    assert len((DATA / name).read_bytes()) <= limit


def test_packaged_network_and_its_metadata(dense):
    shapes = [(300, 784), (100, 300), (10, 100)]
    arrays = [*(layer.weight for layer in dense.layers), *dense.biases]
    assert [array.shape for array in arrays] == [*shapes, *((rows,) for rows, _ in shapes)]
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays)
    with (
        resources.as_file(DATA / "lenet-300-100.safetensors") as path,
        safe_open(path, "numpy") as file,
    ):
        metadata = file.metadata()
    assert float(metadata["test_error"].split()[0]) <= 0.016
    assert metadata["license"] == "Apache-2.0"


def test_packaged_digits():
    digits, labels = demo.load_digits()
    assert digits.shape == (1000, 784)
    assert digits.dtype == np.float32
    assert digits.min() == 0
    assert digits.max() == 1
    assert np.bincount(labels, minlength=10).min() >= 75


def test_the_licence_names_the_makers_of_the_digits():
    text = (DATA / "LICENSE-DATA.txt").read_text()
    for word in ("LeCun", "Cortes", "Burges", "Attribution-ShareAlike 3.0", "Apache License 2.0"):
        assert word in text


def test_training_result_agrees_with_the_packaged_network(rows):
    file = RESULTS / "train_lenet.json"
    if not file.exists():
        pytest.skip("bench/results is not part of the source archive")
    result = json.loads(file.read_text())
    assert result["test_error"] == pytest.approx(1 - result["test_right"] / result["test_digits"])
    assert rows[demo.DENSE].right_after == result["packaged_right"]


# What is shown


def test_the_rows_as_json(rows, monkeypatch):
    monkeypatch.setattr(demo, "run_demo", lambda n_threads, progress: list(rows.values()))
    done = CliRunner().invoke(cli.app, ["demo", "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    printed = json.loads(done.stdout)["rows"]
    assert [row["method"] for row in printed] == NAMES
    for row in printed:
        assert row["ratio"] == pytest.approx(printed[0]["file_bytes"] / row["file_bytes"])
        assert row["right_before"] == printed[0]["right_after"]
        assert set(row) == set(demo.Row.__dataclass_fields__)


def test_every_method_for_matrices_is_shown():
    """The demonstration's network has no convolutions."""
    exported = {
        thing
        for thing in (getattr(methods, name) for name in methods.__all__)
        if issubclass(thing, Method)
        and not inspect.isabstract(thing)
        and not issubclass(thing, ConvMethod)
    }
    shown = {type(layer) for form in demo.FORMS.values() for layer in form.layers}
    missing = sorted(method.__name__ for method in exported - shown)
    assert not missing, f"add a Form of {', '.join(missing)} to FORMS in fastfactor/demo/forms.py"


def test_one_row_a_form_after_the_dense_one(rows):
    assert list(rows) == NAMES
    first = rows[demo.DENSE]
    assert (first.ratio, first.relative_error) == (1.0, 0.0)
    assert first.right_before == first.right_after
    for row in rows.values():
        assert row.seconds_batch > 0
        assert row.seconds_single > 0
        assert row.n_digits == 1000
    assert all(row.seconds_compress > 0 for row in list(rows.values())[1:])


def test_names_and_lessons_fit_into_80_columns():
    assert max(map(len, NAMES)) <= 17
    assert max(len(form.lesson) for form in demo.FORMS.values()) <= 57


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_file(name, paths, rows):
    row = rows[name]
    with safe_open(paths[name], "numpy") as file:
        tensors = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118
        widths = {"F32": 4, "F16": 2, "U8": 1, "I8": 1, "U16": 2, "U32": 4, "I32": 4, "U64": 8}
        payload = sum(int(np.prod(t.get_shape())) * widths[t.get_dtype()] for t in tensors)
    if name in demo.FORMS and demo.FORMS[name].compact:  # one tensor of bytes to other readers
        with store.open_store(paths[name]) as opened:
            payload = sum(opened.info(entry).nbytes for entry in opened)
        assert row.file_bytes - payload <= 300
    assert row.file_bytes == paths[name].stat().st_size
    assert row.payload_bytes == payload
    assert row.ratio == rows[demo.DENSE].file_bytes / row.file_bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_network_is_in_the_form_it_was_saved_in(name, paths):
    layers = Network.load(paths[name]).layers
    settings = (None,) * 3 if name == demo.DENSE else demo.FORMS[name].layers
    for layer, chosen in zip(layers, settings, strict=True):
        if chosen is None:
            assert isinstance(layer, DenseLayer)
        else:
            assert isinstance(layer, Factors)
            assert type(layer).__name__.startswith(type(chosen).__name__)
            # Read lazily: what it holds lies in the file's memory map, unless it is not aligned.
            copied = any(tensor.flags.owndata for tensor in layer.tensors().values())
            assert not copied or demo.FORMS[name].compact


@pytest.mark.parametrize("name", NAMES)
def test_error_is_that_of_the_rebuilt_weights(name, rebuilt, rows):
    lost = total = 0.0
    for key, W in rebuilt[demo.DENSE].items():
        if key.endswith("weight"):
            lost += np.linalg.norm(W.astype(float) - rebuilt[name][key]) ** 2
            total += np.linalg.norm(W.astype(float)) ** 2
        else:
            np.testing.assert_array_equal(rebuilt[name][key], W)
    assert rows[name].relative_error == pytest.approx(lost / total, rel=1e-4)
    assert rows[name].relative_error < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_digits_are_those_of_the_rebuilt_network(name, paths, rebuilt, rows):
    digits, labels = demo.load_digits()
    expected = forward(rebuilt[name], digits)
    scores = Network.load(paths[name]).forward(digits)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    assert rows[name].right_after == np.sum(expected.argmax(axis=1) == labels)
    before = forward(rebuilt[demo.DENSE], digits)
    assert rows[name].right_before == np.sum(before.argmax(axis=1) == labels)
    assert rows[name].same_as_held


def test_a_file_that_reads_other_digits_is_told(monkeypatch):
    load = Network.load

    def shifted(path):
        network = load(path)
        return Network(network.layers, tuple(np.roll(b, 1) + 9 * b for b in network.biases))

    monkeypatch.setattr(demo, "FORMS", {})
    monkeypatch.setattr(Network, "load", shifted)
    monkeypatch.setattr(demo, "load_model", lambda: load(packaged()))
    (row,) = demo.run_demo(1)
    assert not row.same_as_held


def packaged():
    return Path(str(DATA / "lenet-300-100.safetensors"))


@pytest.mark.parametrize(
    ("name", "ratio", "lost"),
    [
        ("low rank", 5, 20),
        ("dictionary", 20, 25),
        ("codebook, 4 bits", 7.5, 5),
        ("codebook, vectors", 20, 15),
        ("sum of codebooks", 20, 15),
        ("entropy coded", 28, 20),
        ("pruned", 5, 25),
        ("pruned + codebook", 18, 25),
        ("deep compression", 30, 25),
        ("simhash", 7, 50),
        ("block projection", 4, 20),
        ("mixed blocks", 4, 20),
    ],
)
def test_compression_keeps_the_digits_right(rows, name, ratio, lost):
    assert rows[name].ratio >= ratio
    assert rows[name].right_after >= rows[name].right_before - lost


def test_the_experiment_has_what_is_shown(rows):
    file = RESULTS / "demo_settings.json"
    if not file.exists():
        pytest.skip("bench/results is not part of the source archive")
    chosen = {line["form"]: line for line in json.loads(file.read_text()) if line["chosen"]}
    assert set(chosen) == set(demo.FORMS)
    for name, line in chosen.items():
        # Another level or LAPACK may round differently.
        assert rows[name].relative_error == pytest.approx(line["relative_error"][0], rel=0.03)
        assert abs(rows[name].right_after - line["right"][0]) <= 10


# What is promised


@pytest.mark.parametrize("name", FEW_THREADS)
def test_same_file_for_any_number_of_threads(name, dense, paths, tmp_path):
    path = tmp_path / "again.safetensors"
    form = demo.FORMS[name]
    dense.compress(form.layers, n_threads=3).save(path, compact=form.compact)
    assert path.read_bytes() == paths[name].read_bytes()


def test_inputs_are_left_alone(dense):
    digits, _ = demo.load_digits()
    copies = [digits.copy(), *(layer.weight.copy() for layer in dense.layers)]
    dense.compress(demo.FORMS["pruned"].layers).forward(digits)
    for array, copy in zip([digits, *(n.weight for n in dense.layers)], copies, strict=True):
        np.testing.assert_array_equal(array, copy)
