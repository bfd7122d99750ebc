"""What a search for convolutions to factor has measured and chosen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..methods.convolution.base import ConvMethod


@dataclass(frozen=True)
class SearchRow:
    """A candidate for a layer, alone in the network.

    Attributes
    ----------
    name : str
        The name of the layer's weight.
    method : str
        The settings, as text.
    bytes_dense, bytes_factors : int
    seconds_dense, seconds_factors : float
        Of the layer, for the inputs that it has in the example.
    quality : float or None
        Of the network with this layer factored; None if the candidate gains nothing.
    chosen : bool
        Whether it is in the result.
    """

    name: str
    method: str
    bytes_dense: int
    bytes_factors: int
    seconds_dense: float
    seconds_factors: float
    quality: float | None
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What `search_convolutions` has found.

    Attributes
    ----------
    model : Module
        A copy of the network with the chosen factors, in eval mode.
    compressors : dict of methods
        The chosen settings by names of weights, as `apply_compression` takes them.
    quality_dense, quality : float
        Of the network before and after.
    seconds_dense, seconds : float
        Of the whole network for the example, before and after.
    rows : tuple of SearchRow
        All candidates.
    """

    model: nn.Module
    compressors: dict[str, ConvMethod]
    quality_dense: float
    quality: float
    seconds_dense: float
    seconds: float
    rows: tuple[SearchRow, ...]

    def to_text(self) -> str:
        """Return a table of the chosen candidates, and what the whole network gains.

        Returns
        -------
        str
            A line for each, and one for the network.
        """
        lines = [f"{'weight':24} {'times faster':>12} {'smaller':>8} {'quality':>9}  method"]
        for row in self.rows:
            if row.chosen:
                faster = row.seconds_dense / row.seconds_factors
                smaller = row.bytes_dense / row.bytes_factors
                lines.append(
                    f"{row.name:24} {faster:12.2f} {smaller:8.2f} {row.quality:9.4f}  {row.method}"
                )
        lines.append(
            f"the whole network: {self.seconds_dense / self.seconds:.2f} times faster, quality "
            f"{self.quality_dense:.4f} → {self.quality:.4f}"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"SearchResult({len(self.compressors)} weights, {self.to_text().splitlines()[-1]})"
