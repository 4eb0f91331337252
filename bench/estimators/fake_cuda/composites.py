"""Composite operators whose choice of kernel asks the GPU: answered from the properties of the one that is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def attention(capability: tuple[int, int]) -> Callable[..., torch.Tensor]:
    """Scaled-dot-product attention (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: select_sdp_backend)."""

    def scaled_dot_product_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        if query.dtype == torch.float32:
            result: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, wants_gradient, dropout_p, is_causal, scale=scale
            )[0]
            return result
        result = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
        return result

    return scaled_dot_product_attention


def build_composites(capability: tuple[int, int]) -> dict[str, Callable[..., Any]]:
    """Replacements by operator, for the dispatch key AutogradCUDA."""
    return {"scaled_dot_product_attention": attention(capability)}
