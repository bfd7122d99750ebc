"""The matrices on which the methods of a contract are tried."""

from __future__ import annotations

import ml_dtypes
import numpy as np


class Matrices:
    METHODS = ()
    SHAPE = (24, 32)
    LARGE = (96, 128)  # where a size or an error is searched for
    EXACT_BITS = True  # the same for any number of threads; not where LAPACK decides

    def matrix(self, dtype=np.float32, shape=None, seed=0):
        """With some structure in it: low rank, a few large values."""
        rng = np.random.default_rng(seed)
        out, inputs = shape or self.SHAPE
        W = rng.standard_normal((out, 3)) @ rng.standard_normal((3, inputs))
        W += 0.3 * rng.standard_normal((out, inputs))
        return W.astype(dtype)

    def tolerance(self, dtype):
        """Of a value rounded to dtype, relative to the largest."""
        return 4 * float(ml_dtypes.finfo(dtype).eps)
