"""The memory that compressing and decompressing a model take."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

# Not ru_maxrss, which begins at what the process had that started this one.
MEMORY = """
import re, sys
import numpy as np
from fastfactor import compress_file, decompress_file
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
warm = np.ones((64, 64), np.float16)
from fastfactor.methods import Codebook
Codebook(n_bits=4).compress(warm, n_threads=2)
before = peak()
recipe = {"default": {"method": "codebook", "n_bits": 4, "granularity": "row"}}
compress_file(sys.argv[1], sys.argv[2], recipe, n_threads=2)
first = peak() - before
decompress_file(sys.argv[2], sys.argv[3])
print(first, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_a_few_times_the_largest_tensor(tmp_path, rng):
    one = rng.standard_normal((512, 2048)).astype(np.float16)  # 2 MB, 16 of them
    save_file({f"w{i}": one for i in range(16)}, tmp_path / "a.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    used, both = map(int, done.stdout.split())
    assert one.nbytes < used
    assert used < 14 * one.nbytes, used
    assert both < 14 * one.nbytes, both
