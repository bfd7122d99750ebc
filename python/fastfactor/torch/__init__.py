"""Compress the layers of a PyTorch model while it trains.

::

    compression = fastfactor.torch.apply_compression(model, LowRank(ratio=8), Schedule.over(steps))
    for batch in batches:
        ...
        optimizer.step()
        compression.step()
    compression.to_store("small.safetensors")

Layers keep their place, their class and their names. Needs PyTorch: ``pip install
"fastfactor[torch]"``.
"""

try:
    import torch as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "fastfactor.torch needs PyTorch, which is not installed: pip install 'fastfactor[torch]'"
    ) from error

from ..training.report import LayerReport
from .chains import ChannelOrder, to_convolutions
from .compression import Compression, apply_compression
from .layer_by_layer import LayerStage, layer_by_layer
from .saving import insert_factors, load_compressed
from .search import search_convolutions
from .search_report import SearchResult
from .statistics import Statistics, collect_statistics, wrong_class_losses

__all__ = [
    "ChannelOrder",
    "Compression",
    "LayerReport",
    "LayerStage",
    "SearchResult",
    "Statistics",
    "apply_compression",
    "collect_statistics",
    "insert_factors",
    "layer_by_layer",
    "load_compressed",
    "search_convolutions",
    "to_convolutions",
    "wrong_class_losses",
]
