"""All three stages at once, for a layer or a network, without training in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _checks
from .._checks import Array
from .coding import check_gap_bits, coded_layer
from .layer import CodedLayer
from .network import CodedNetwork
from .stages import CODEBOOK_DTYPES, INITS, MAX_BITS, prune, share


@dataclass(frozen=True, kw_only=True)
class DeepCompression:
    """Settings of all three stages for a layer.

    Parameters
    ----------
    sparsity, std_multiple : float, optional
        As in :func:`prune`. With neither, what is zero is pruned already.
    n_bits, init, codebook_dtype, random_state
        As in :func:`share`.
    gap_bits : int, optional
        As in :func:`encode`.

    Raises
    ------
    TypeError, ValueError
        For values out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.deep_compression import DeepCompression
    >>> W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> layer = DeepCompression(sparsity=0.9, n_bits=4).compress(W)
    >>> layer.sizes.n_kept, layer.nbytes < W.nbytes / 20
    (410, True)
    """

    sparsity: float | None = None
    std_multiple: float | None = None
    n_bits: int = 6
    gap_bits: int | None = None
    init: str = "linear"
    codebook_dtype: str | None = None
    random_state: Any = 0

    def __post_init__(self) -> None:
        if self.sparsity is not None and self.std_multiple is not None:
            raise ValueError(
                f"one of sparsity and std_multiple must be given, "
                f"got {self.sparsity!r} and {self.std_multiple!r}"
            )
        if self.sparsity is not None and _checks.nonnegative(self.sparsity, "sparsity") > 1:
            raise ValueError(f"sparsity must be in [0, 1], got {self.sparsity!r}")
        if self.std_multiple is not None:
            _checks.nonnegative(self.std_multiple, "std_multiple")
        _checks.integer(self.n_bits, "n_bits", 1, MAX_BITS)
        check_gap_bits(self.gap_bits)
        _checks.choice(self.init, "init", INITS)
        if self.codebook_dtype is not None:
            _checks.choice(self.codebook_dtype, "codebook_dtype", CODEBOOK_DTYPES)

    def compress(
        self, W: Any, *, importance: Any = None, n_threads: int | None = None
    ) -> CodedLayer:
        """Prune, share and code a layer's weight, without training in between.

        Parameters
        ----------
        W : array of any shape
            Finite floats.
        importance : array of W's shape, optional
            As in :func:`prune` and :func:`share`.
        n_threads : int, optional
            Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.
        """
        mask = None
        if self.sparsity is not None or self.std_multiple is not None:
            mask = prune(
                W,
                sparsity=self.sparsity,
                std_multiple=self.std_multiple,
                importance=importance,
                n_threads=n_threads,
            )
        shared = share(
            W,
            mask,
            n_bits=self.n_bits,
            init=self.init,
            codebook_dtype=self.codebook_dtype,
            importance=importance,
            random_state=self.random_state,
            n_threads=n_threads,
        )
        return coded_layer(shared, self.gap_bits, n_threads)


def compress_network(
    weights: Mapping[str, Any],
    settings: DeepCompression | Mapping[str, DeepCompression],
    *,
    plain: Mapping[str, Array] | None = None,
    n_threads: int | None = None,
) -> CodedNetwork:
    """All layers of a network, and what is not compressed: biases, say.

    Parameters
    ----------
    weights : mapping of names to arrays
    settings : DeepCompression, or a mapping of the same names to one each
    plain : mapping of names to arrays, optional
        Kept as they are.
    n_threads : int, optional
        Defaults to OMP_NUM_THREADS, threadpoolctl's limit, or the cores this process may use.

    Returns
    -------
    CodedNetwork
        ``to_bytes()`` is all of it; ``save(path)`` writes a file.

    Raises
    ------
    TypeError, ValueError
        For a layer without settings, settings without a layer, and what a stage refuses.

    Notes
    -----
    The cost of the stages, :func:`share` above all. The same bytes for any number of threads.

    Source: S. Han, H. Mao, W. Dally, Deep Compression, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from fastfactor.deep_compression import CodedNetwork, DeepCompression, compress_network
    >>> W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> network = compress_network(
    ...     {"fc.weight": W},
    ...     DeepCompression(sparsity=0.9, n_bits=4),
    ...     plain={"fc.bias": np.zeros(64, np.float32)},
    ... )
    >>> again = CodedNetwork.from_bytes(network.to_bytes())
    >>> x = np.ones((2, 64), np.float32)
    >>> y = again.layers["fc.weight"].linear(x) + again.plain["fc.bias"]
    >>> y.shape
    (2, 64)
    """
    if isinstance(settings, DeepCompression):
        settings = dict.fromkeys(weights, settings)
    if settings.keys() != weights.keys():
        unmatched = ", ".join(sorted(map(repr, settings.keys() ^ weights.keys())))
        raise ValueError(f"settings must be given for each of weights, got one only of {unmatched}")
    layers = {name: settings[name].compress(W, n_threads=n_threads) for name, W in weights.items()}
    return CodedNetwork(layers, dict(plain or {}))
