"""Compress the layers of a Keras 3 model while it trains, on any of Keras's backends.

::

    compression = fastfactor.keras.apply_compression(model, LowRank(ratio=8), Schedule.over(steps))
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, y, callbacks=[fastfactor.keras.CompressionCallback(compression)])
    compression.finalize().save("small.keras")

Importing it lets ``keras.models.load_model`` read what was saved. Needs Keras and one of its
backends: ``pip install "fastfactor[keras]"``.
"""

try:
    import keras as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"fastfactor.keras needs Keras and one of its backends, but {error.name} is not installed: "
        "pip install 'fastfactor[keras]', and tensorflow, torch or jax"
    ) from error

from .callback import CompressionCallback
from .compression import Compression, apply_compression
from .saving import load_compressed

__all__ = ["Compression", "CompressionCallback", "apply_compression", "load_compressed"]
