"""Compression in the steps of `fit`."""

from __future__ import annotations

from typing import Any

import keras

from .compression import Compression


class CompressionCallback(keras.callbacks.Callback):
    """Make each batch of ``fit`` a step of a compression.

    Parameters
    ----------
    compression : Compression
        From `apply_compression`, of the model that is fitted.

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        In ``fit``, if the model is another one.

    Notes
    -----
    With ``steps_per_execution`` above 1 several steps are made at once, and what was due in one of
    them follows after the last.

    Examples
    --------
    >>> import keras
    >>> from fastfactor.keras import CompressionCallback, apply_compression
    >>> from fastfactor.methods import LowRank
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6)])
    >>> compression = apply_compression(model, LowRank(rank=2))
    >>> callbacks = [CompressionCallback(compression)]

    ::

        model.fit(x, y, epochs=10, callbacks=callbacks)
    """

    def __init__(self, compression: Compression) -> None:
        super().__init__()
        if not isinstance(compression, Compression):
            raise TypeError(f"compression must be a Compression, got {compression!r}")
        self.compression = compression
        self._last_batch = -1

    def on_train_begin(self, logs: Any = None) -> None:
        if self.model is not self.compression.model:
            raise ValueError("the model must be that of the compression, got another one")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        n_steps, self._last_batch = batch - self._last_batch, batch
        self.compression.step(self.compression.last_step + n_steps)
