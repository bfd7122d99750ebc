"""Files of compressed and plain matrices: safetensors files, read lazily through a memory map.

>>> import tempfile, numpy as np
>>> from fastfactor import store
>>> from fastfactor.methods import LowRank
>>> W = np.outer([1.0, 2.0], [3.0, 4.0])
>>> with tempfile.TemporaryDirectory() as folder:
...     path = folder + "/small.safetensors"
...     store.save(path, {"fc": LowRank(rank=1).compress(W)})
...     with store.open_store(path) as saved:
...         print(saved["fc"].linear(np.ones(2)))
[ 7. 14.]
"""

from .files.index import FORMAT_VERSION, Entry
from .files.layout import Layout
from .files.save import save
from .files.store import Store, open_store
from .files.writer import Writer

__all__ = ["FORMAT_VERSION", "Entry", "Layout", "Store", "Writer", "open_store", "save"]
