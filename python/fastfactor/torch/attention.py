"""Multi-head attention whose projections are compressed."""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn
from torch.nn import functional

from .compressed_layer import CompressedLayer
from .layers import CompressedLinear

IN_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class CompressedProjection(CompressedLinear, nn.modules.linear.NonDynamicallyQuantizableLinear):
    """The projection behind an attention."""


class CompressedAttention(CompressedLayer, nn.MultiheadAttention):
    """Attention whose projections multiply by factors. W is not rebuilt."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("attn_mask must be given with is_causal, got none")
        q, k, v = self._projected(query, key, value)
        is_batch, first = query.dim() == 3, self.batch_first
        if not is_batch:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        elif not first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], 1)
        if self.add_zero_attn:
            k = torch.cat([k, k.new_zeros(len(k), 1, k.shape[2])], 1)
            v = torch.cat([v, v.new_zeros(len(v), 1, v.shape[2])], 1)
        n_added = (self.bias_k is not None) + self.add_zero_attn
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        # The hint alone says what the mask says, where there is no other mask.
        is_hint = is_causal and key_padding_mask is None and not need_weights and not n_added
        mask = None if is_hint else self._mask(attn_mask, key_padding_mask, q, n_added)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = q * sqrt(1 / self.head_dim) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, dropout, self.training)
            found = weights @ v
            shown = weights.mean(1) if average_attn_weights else weights
            shown = shown if is_batch else shown.squeeze(0)
        else:
            found = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=is_hint
            )
            shown = None
        y: torch.Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        if not is_batch:
            y = y.squeeze(0)
        elif not first:
            y = y.transpose(0, 1)
        return y, shown

    def _projected(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the queries, keys and values, with their biases."""
        if self._qkv_same_embed_dim:
            parts = self._packed_projections(query, key, value)
        else:
            parts = (
                self.product("q_proj_weight", query),
                self.product("k_proj_weight", key),
                self.product("v_proj_weight", value),
            )
        if self.in_proj_bias is None:
            return parts
        q, k, v = self.in_proj_bias.chunk(3)
        return parts[0] + q, parts[1] + k, parts[2] + v

    def _packed_projections(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Factors give all rows of the product, so that one is enough for equal inputs.
        from_query = self.product("in_proj_weight", query)
        from_key = from_query if key is query else self.product("in_proj_weight", key)
        from_value = from_key if value is key else self.product("in_proj_weight", value)
        return from_query.chunk(3, -1)[0], from_key.chunk(3, -1)[1], from_value.chunk(3, -1)[2]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, length, features) as (batch, heads, length, features of a head)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(
        self,
        attn_mask: torch.Tensor | None,
        key_padding_mask: torch.Tensor | None,
        q: torch.Tensor,
        n_added: int,
    ) -> torch.Tensor | None:
        """Return what is added to the scores (batch, heads, queries, keys); None for nothing."""
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, q)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.num_heads))
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
            mask = padding if mask is None else mask + padding
        return mask if mask is None else functional.pad(mask, (0, n_added))


def _added(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a mask as numbers to add to scores: −∞ where a mask of booleans is true."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def leave_fast_paths(model: nn.Module) -> None:
    """Keep what holds compressed layers from reading their weights in the place of calling them.

    In eval mode the layers of PyTorch's Transformer hand the weights of their parts to one fused
    function, and attention those of its last projection.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and isinstance(module.out_proj, CompressedLayer):
            module.__class__ = CompressedAttention
            module.compressed = {}
        if not any(isinstance(part, CompressedLayer) for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
