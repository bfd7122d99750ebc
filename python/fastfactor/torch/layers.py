"""Linear layers and tables whose weight is compressed: the same classes, with another product."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..training import State
from .compressed_layer import CompressedLayer


class CompressedLinear(CompressedLayer, nn.Linear):
    """A linear layer that blends its weight with factors, or has factors alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.stage_of("weight") is State.DENSE:
            return functional.linear(input, self.full("weight"), self.bias)
        y, bias = self.product("weight", input), self.bias
        return y if bias is None else y + bias


class CompressedEmbedding(CompressedLayer, nn.Embedding):
    """A table of rows that blends its weight with factors, or has factors alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        stage = self.stage_of("weight")
        if stage is State.DENSE:
            return self._look_up(input)
        rows = self.rows("weight", input)
        if self.padding_idx is not None:
            # As the table's row for padding, which gets no gradient.
            rows = torch.where((input == self.padding_idx).unsqueeze(-1), rows.detach(), rows)
        if stage is State.BLENDED:
            alpha = self.alpha_of("weight")
            rows = alpha * self._look_up(input) + (1 - alpha) * rows
        return rows

    def _look_up(self, input: torch.Tensor) -> torch.Tensor:
        table = self.dense("weight")
        return functional.embedding(
            input, table, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse
        )


class CompressedEmbeddingBag(CompressedLayer, nn.EmbeddingBag):
    """Sums, means or maxima of rows of a table that is compressed."""

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        stage = self.stage_of("weight")
        if stage is State.DENSE:
            table, ids, padding = self.dense("weight"), input, self.padding_idx
        else:
            # A table of the rows that are needed, in the order in which they are.
            table = self.rows("weight", input.reshape(-1))
            if stage is State.BLENDED:
                alpha = self.alpha_of("weight")
                dense = functional.embedding(input.reshape(-1), self.dense("weight"))
                table = alpha * dense + (1 - alpha) * table
            ids = torch.arange(input.numel(), device=input.device).reshape(input.shape)
            padding = None
            if self.padding_idx is not None:
                padding = input.numel()
                table = torch.cat([table, table.new_zeros(1, table.shape[1])])
                ids = torch.where(input == self.padding_idx, padding, ids)
        return functional.embedding_bag(
            ids,
            table,
            offsets,
            mode=self.mode,
            scale_grad_by_freq=stage is State.DENSE and self.scale_grad_by_freq,
            sparse=stage is State.DENSE and self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
