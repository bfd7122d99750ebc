"""A Keras model with a layer of most kinds, its data and its training."""

from __future__ import annotations

import keras
import numpy as np
from fastfactor.keras import CompressionCallback
from fastfactor.methods import Codebook, Dictionary, LowRank, Prune
from fastfactor.training import Schedule
from keras import layers

SCHEDULE = Schedule(begin=3, frequency=2, alpha_decrement=0.5)  # factored at 3, done at 7
METHODS = (
    LowRank(rank=3),
    Codebook(n_bits=3),
    Prune(sparsity=0.6),
    Dictionary(n_nonzero_coefs=2, block_size=4, n_atoms=12, max_iter=2),
)
# Other backends compile every program, which takes seconds; there a case of each idea must do.
IS_QUICK = keras.backend.backend() == "torch"
FEW_METHODS = METHODS if IS_QUICK else METHODS[1:2]
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def arrays(result):
    results = result if isinstance(result, list | tuple) else [result]
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in results]


def net():
    words = keras.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(20, 12, name="table")(words)
    x = layers.Conv1D(16, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.LSTM(8, name="rnn")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(words, layers.Dense(5, name="head")(x))


WORDS = RNG.integers(0, 20, (64, 6)).astype("int32")
LABELS = RNG.integers(0, 5, 64)
NAMES = (
    "table/embeddings",
    "conv/kernel",
    "rnn/lstm_cell/kernel",
    "rnn/lstm_cell/recurrent_kernel",
    "head/kernel",
)


def compiled(model, optimizer=None, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer or keras.optimizers.Adam(0.01), loss=loss, jit_compile=False, **settings
    )
    return model


def fitted(model, compression, *, epochs=1, callbacks=()):
    """Fit 8 steps an epoch, in order."""
    return model.fit(
        WORDS,
        LABELS,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[CompressionCallback(compression), *callbacks],
    )
