"""Processes, threads and signals around a kernel: fork, Ctrl-C, thread limits, the GIL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fastfactor
import numpy as np
import pytest
import threadpoolctl
from fastfactor._core import kernels
from processes import LIMIT, output_of

# Defines answer(): bytes that depend on every kernel.
WORK = """
import numpy as np
import fastfactor

rng = np.random.default_rng(1)
X = rng.standard_normal((5000, 16)).astype(np.float32)
atoms = rng.standard_normal((64, 16)).astype(np.float32)

def answer(n_threads=2):
    codes = fastfactor.omp(X, atoms, n_nonzero_coefs=4, n_threads=n_threads)
    found = fastfactor.kmeans(X, 50, random_state=0, max_iter=5, n_threads=n_threads)
    labels, distances = fastfactor.assign(X, found.centroids, n_threads=n_threads)
    scalars = fastfactor.kmeans1d(X.T, 20, n_threads=n_threads)
    product = fastfactor.spmm(codes, atoms, n_threads=n_threads)
    arrays = (codes.data, codes.indices, found.centroids, found.labels, labels, distances, product)
    arrays += (scalars.centroids, scalars.labels)
    return b"".join(array.tobytes() for array in arrays)
"""

# Kernels that run for ever, as far as a test can tell.
ENDLESS = {
    "kmeans": "fastfactor.kmeans(X, 50, n_init=10**9, n_threads={n_threads})",
    "kmeans of groups": (
        "fastfactor.kmeans(np.broadcast_to(X[:500], (40, 500, 16)), 50, n_init=10**9, "
        "n_threads={n_threads})"
    ),
    "one start of k-means++": (
        "fastfactor.kmeans(np.tile(X, (200, 1)), 200000, max_iter=1, n_threads={n_threads})"
    ),
    "kmeans1d": (
        "fastfactor.kmeans1d(np.broadcast_to(X.ravel(), (4000, 80000)), 16, n_threads={n_threads})"
    ),
    "omp": (
        "fastfactor.omp(np.broadcast_to(X[:1].repeat(64, axis=1), (10**7, 1024)), "
        "np.repeat(atoms, 64, axis=1).repeat(32, axis=0) + np.eye(2048, 1024, dtype=np.float32), "
        "n_nonzero_coefs=60, n_threads={n_threads})"
    ),
    "omp of many atoms": (
        "fastfactor.omp(np.random.default_rng(0).standard_normal((4000, 1024)), "
        "np.random.default_rng(1).standard_normal((4096, 1024)), "
        "n_nonzero_coefs=900, n_threads={n_threads})"
    ),
    "hashed_omp": (
        "fastfactor.hashed_omp(np.broadcast_to(X[:1], (10**8, 16)), "
        "np.repeat(atoms, 512, axis=0) + np.arange(16, dtype=np.float32) ** 0.5, "
        "n_nonzero_coefs=16, probe_fraction=0.5, n_threads={n_threads})"
    ),
}

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


# --- fork


@forks
def test_a_child_of_fork_computes_what_its_parent_computes():
    """GNU OpenMP hangs here unless the child does without the team of its parent."""
    code = f"""{WORK}
import os, sys

expected = answer()
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        same = answer() == expected and answer(1) == expected and answer(3) == expected
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if answer() == expected else 3)
        same &= os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
        os._exit(0 if same else 4)
    children.append(child)
assert answer() == expected
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
assert answer() == expected
"""
    assert output_of(code).strip() == "[0, 0]"


@forks
def test_a_child_forked_before_first_use():
    code = f"""{WORK}
import os

child = os.fork()
mine = answer()
if child == 0:
    os._exit(0 if len(mine) > 0 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert output_of(code).strip() == "0"


@forks
def test_a_fork_while_another_thread_computes():
    code = f"""{WORK}
import os, threading, time

expected = answer()
busy = threading.Thread(target=lambda: [answer() for _ in range(20)])
busy.start()
time.sleep(0.02)
child = os.fork()
if child == 0:
    os._exit(0 if answer() == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
busy.join()
"""
    assert output_of(code).strip() == "0"


@forks
def test_a_pool_of_forked_processes():
    code = f"""{WORK}
import multiprocessing

expected = answer()
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(pool.map(answer, [1, 2, 3, 2]) == [expected] * 4)
"""
    assert output_of(code).strip() == "True"


# --- threads


def test_calls_from_several_python_threads_at_once(rng):
    problems = [
        (
            rng.standard_normal((700 + i, 12)).astype(np.float32),
            rng.standard_normal((50, 12)).astype(np.float32),
        )
        for i in range(12)
    ]

    def solve(problem, n_threads):
        X, atoms = problem
        codes = fastfactor.omp(X, atoms, n_nonzero_coefs=3, n_threads=n_threads)
        found = fastfactor.kmeans(X, 20, random_state=0, n_threads=n_threads)
        labels, distances = fastfactor.assign(X, atoms, n_threads=n_threads)
        arrays = (codes.data, codes.indices, codes.indptr, *found, labels, distances)
        return b"".join(np.asarray(array).tobytes() for array in arrays)

    expected = [solve(problem, 1) for problem in problems]
    with ThreadPoolExecutor(6) as pool:
        for n_threads in (1, 2, 3):
            found = list(pool.map(solve, problems, [n_threads] * len(problems)))
            assert found == expected


def test_errors_in_several_threads_stay_with_their_callers(rng):
    X = rng.standard_normal((3000, 8)).astype(np.float32)
    broken = X.copy()
    broken[1234, 5] = np.nan

    def call(array):
        try:
            return fastfactor.kmeans(array, 9, random_state=0, max_iter=3, n_threads=2).inertia
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, [X, broken] * 10))
    assert found[::2] == [call(X)] * 10
    assert found[1::2] == ["X must be finite, got nan at [1234, 5]"] * 10


@pytest.mark.parametrize("kernel", ENDLESS)
def test_the_gil_is_released(kernel):
    """Were it held, nothing after the start of the thread would ever run."""
    call = ENDLESS[kernel].format(n_threads=1)
    code = f"""{WORK}
import os, threading, time

started = threading.Event()

def run():
    started.set()
    {call}

threading.Thread(target=run, daemon=True).start()
started.wait()
time.sleep(0.3)
counted = sum(range(10**6))
print(threading.active_count(), counted, flush=True)
os._exit(0)
"""
    assert output_of(code).split() == ["2", "499999500000"]


# --- Ctrl-C


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize(
    ("kernel", "n_threads"), [*((name, 2) for name in ENDLESS), ("omp", 1), ("kmeans", 1)]
)
def test_control_c_interrupts(kernel, n_threads):
    call = ENDLESS[kernel].format(n_threads=n_threads)
    # A job in the background of a shell begins with the signal ignored.
    code = f"""{WORK}
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
expected = answer()
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(answer() == expected)
"""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as process:
        limit = threading.Timer(LIMIT, process.kill)
        limit.start()
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.4)  # well inside the call
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert time.monotonic() - sent < 5  # a second on a machine that is not busy
            assert process.stdout.readline() == "True\n"
            assert process.wait(LIMIT) == 0
        finally:
            limit.cancel()
            process.kill()


# --- how many threads

openmp = pytest.mark.skipif(
    kernels.build_info()["threading"] != "OpenMP", reason="built without OpenMP"
)


def cores():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


DEFAULT_THREADS = "from fastfactor._core import kernels; print(kernels.default_threads())"


@openmp
@pytest.mark.parametrize("wanted", [1, 2, 1000])
def test_omp_num_threads_is_the_default(wanted):
    shown = int(output_of(DEFAULT_THREADS, environment={"OMP_NUM_THREADS": str(wanted)}))
    assert shown == min(wanted, cores())


@openmp
def test_without_a_setting_all_cores_of_the_process_are_used():
    environment = {"OMP_NUM_THREADS": "", "OMP_THREAD_LIMIT": ""}
    code = "import os; del os.environ['OMP_NUM_THREADS'], os.environ['OMP_THREAD_LIMIT'];"
    shown = int(output_of(code + DEFAULT_THREADS, environment=environment))
    assert shown == cores()


@openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_bound_to_one_core_uses_one_thread():
    bind = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    assert output_of(bind + DEFAULT_THREADS).strip() == "1"


@openmp
def test_threadpoolctl_limits_the_default():
    before = kernels.default_threads()
    with threadpoolctl.threadpool_limits(1):
        assert kernels.default_threads() == 1
    assert kernels.default_threads() == before


def test_a_call_leaves_no_global_setting_behind(rng):
    before = kernels.default_threads(), threadpoolctl.threadpool_info()
    X = rng.standard_normal((500, 4))
    fastfactor.kmeans(X, 5, n_threads=3)
    fastfactor.omp(X, X[:9], n_threads=3)
    assert (kernels.default_threads(), threadpoolctl.threadpool_info()) == before


def test_more_threads_than_work(rng):
    X = rng.standard_normal((3, 2))
    for n_threads in (7, 64, 1024):
        assert fastfactor.kmeans(X, 2, init=X[:2], n_threads=n_threads).labels.shape == (3,)
        assert fastfactor.omp(X, X, n_threads=n_threads).shape == (3, 3)


# --- memory

NEAR_THE_LIMIT = """
import re, resource, sys
import numpy as np
import fastfactor

X = np.random.default_rng(0).standard_normal((20000, 8)).astype(np.float32)
expected = fastfactor.kmeans(X, 50, init=X[:50], max_iter=3, n_threads=1).labels
in_use = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (in_use + {room}, resource.RLIM_INFINITY))
for n_threads in (8, 2, 8, 1, 3):
    try:
        found = fastfactor.kmeans(X, 50, init=X[:50], max_iter=3, n_threads=n_threads).labels
        assert (found == expected).all()
    except MemoryError:
        pass
print("alive")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("megabytes", [2, 10, 20, 30, 45, 70])
def test_threads_that_cannot_start_are_done_without(megabytes):
    """GNU OpenMP ends the process if a thread's stack does not fit into its address space."""
    assert output_of(NEAR_THE_LIMIT.format(room=megabytes << 20)).strip() == "alive"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_operands_are_not_copied_or_widened_whole(dtype):
    """300,000 rows of 512 share the memory of one; as float32 of their own they take 600 MB."""
    code = f"""
        import re
        import numpy as np
        import fastfactor

        X = np.broadcast_to(np.arange(512).astype("{dtype}") / 64, (300_000, 512))
        few = X[:2] * np.array([[1], [0]], X.dtype)
        fastfactor.omp(X, few, n_nonzero_coefs=1)
        fastfactor.kmeans(X, 2, init=few, max_iter=1)
        fastfactor.kmeans(X, 2, max_iter=1)
        fastfactor.assign(X, few)
        # Of this process: ru_maxrss would begin at what its parent had.
        print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
    """
    assert int(output_of(code)) < 300


def test_results_too_large_for_any_machine_are_a_memory_error():
    X = np.broadcast_to(np.float32(1), (2**56, 4))
    with pytest.raises(MemoryError):
        fastfactor.omp(X, np.eye(4, dtype=np.float32))
    with pytest.raises(MemoryError):
        fastfactor.assign(X, np.eye(4, dtype=np.float32))
    with pytest.raises(MemoryError):
        fastfactor.kmeans(np.broadcast_to(np.float32(1), (1, 2**27)), 2**31 - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_kmeans1d_needs_memory_for_the_values_whatever_the_clusters():
    printed = output_of("""
        import re
        import numpy as np
        import fastfactor

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

        x = np.random.default_rng(0).standard_normal(3_000_000)
        fastfactor.kmeans1d(x[:1000], 3)
        before = peak()
        fastfactor.kmeans1d(x, 2000, n_threads=2)
        print((peak() - before) / len(x))
        """)
    labels, rounding = 4, 2
    assert float(printed) < 64 + labels + rounding
