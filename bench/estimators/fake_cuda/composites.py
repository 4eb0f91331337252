"""Composite operators whose choice of kernel asks the GPU: answered from the properties of the one that is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

PREFERS_CUDNN = {(9, 0), (10, 0)}
"""Where cuDNN's attention goes before flash attention in half precision (check_prefer_cudnn_attention).

So in torch 2.13 and 2.15; 2.6 and 2.9 take flash attention. What lies between is taken to turn at 2.11.
"""


def _prefers_cudnn(capability: tuple[int, int]) -> bool:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return capability in PREFERS_CUDNN and version >= (2, 11)


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
        aten, options = torch.ops.aten, {"scale": scale}
        half = query.dtype in (torch.bfloat16, torch.float16)
        result: torch.Tensor
        if (
            half
            and attn_mask is None
            and _prefers_cudnn(capability)
            and query.shape[-1] <= 128
            and query.shape[-1] % 8 == 0
        ):
            result = aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, wants_gradient, dropout_p, is_causal, False, **options
            )[0]
        elif (
            half and attn_mask is None and capability >= (8, 0) and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
        ):
            result = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, **options
            )[0]
        else:
            result = aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, wants_gradient, dropout_p, is_causal, **options
            )[0]
        return result

    return scaled_dot_product_attention


def build_composites(capability: tuple[int, int]) -> dict[str, Callable[..., Any]]:
    """Replacements by operator, for the dispatch key AutogradCUDA."""
    return {"scaled_dot_product_attention": attention(capability)}
