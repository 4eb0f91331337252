"""Which kernel computes scaled-dot-product attention, which torch asks the GPU.

Sources: aten/src/ATen/native/transformers/attention.cpp (scaled_dot_product_attention),
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (select_sdp_backend).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.estimators.recording import AttentionTraits

WIDE_CUDNN = 92200
"""The last cuDNN whose attention takes heads no wider than 128 (check_cudnn_tensor_shapes)."""

_MASK_ALIGNMENT = 8
"""Of the rows of a mask for the memory-efficient kernel, in elements (preprocess_mask)."""


_SINCE_2_14 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)
"""Whether three dimensions are taken for one batch, and a single head of keys and values for the group of all queries,
`enable_gqa` or not; seen in 2.15, and 2.13 is taken to be without."""


def _prefers_cudnn(gpu: AttentionTraits) -> bool:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return gpu.prefers_cudnn and version >= (2, 11)


class _Attention:
    """Scaled-dot-product attention of some tensors, and which kernel computes it.

    Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (select_sdp_backend), sdp_utils_cpp.h.
    """

    def __init__(
        self, gpu: AttentionTraits, tensors: Sequence[torch.Tensor], mask: torch.Tensor | None, grouped: bool
    ) -> None:
        self.gpu, self.mask, self.grouped = gpu, mask, grouped
        self.query, self.key, self.value = self.tensors = tensors
        self.wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        self.half = self.query.dtype in (torch.bfloat16, torch.float16)

    def backend(self, dropout: float, causal: bool) -> str:
        """`cudnn`, `flash`, `efficient` or `math`."""
        backends: Any = torch.backends.cuda
        if self._is_fusible():
            if _prefers_cudnn(self.gpu) and backends.cudnn_sdp_enabled() and self._suits_cudnn(dropout):
                return "cudnn"
            if backends.flash_sdp_enabled() and self._suits_flash(causal):
                return "flash"
            if backends.mem_efficient_sdp_enabled() and self._suits_efficient():
                return "efficient"
        return "math"

    def _is_fusible(self) -> bool:
        """What all fused kernels ask for: four dimensions, nothing empty, as many heads, neighbours in the last one."""
        query, key, value = self.tensors
        if any(tensor.dim() != 4 or 0 in tensor.shape for tensor in self.tensors):
            return False
        if not query.shape[0] == key.shape[0] == value.shape[0] or any(t.stride(-1) != 1 for t in self.tensors):
            return False
        if self.grouped or (_SINCE_2_14 and key.shape[1] == 1):
            return key.shape[1] == value.shape[1] and query.shape[1] % key.shape[1] == 0
        return query.shape[1] == key.shape[1] == value.shape[1]

    def _widths(self) -> tuple[int, int]:
        return self.query.shape[-1], self.value.shape[-1]

    def _suits_cudnn(self, dropout: float) -> bool:
        widths = self._widths()
        cudnn: Any = torch.backends.cudnn
        limit = 256 if (cudnn.version() or 0) > WIDE_CUDNN else 128
        if limit == 256 and self.wants_gradient and widths not in ((192, 128), (256, 256)):
            limit = 128
        return (
            self.half
            and self._mask_suits_cudnn()
            and all(width <= limit and width % 8 == 0 for width in widths)
            and (16 * dropout).is_integer()
            and self.key.shape[2] != 1
            and not (dropout and self.query.shape[2] == 1)
        )

    def _mask_suits_cudnn(self) -> bool:
        mask, query = self.mask, self.query
        if mask is None:
            return True
        if mask.requires_grad or mask.dim() not in (2, 4):
            return False
        if mask.shape[-2] not in (1, query.shape[2]) or mask.shape[-1] not in (1, self.key.shape[2]):
            return False
        return mask.dim() == 2 or (mask.shape[0] in (1, query.shape[0]) and mask.shape[1] in (1, query.shape[1]))

    def _suits_flash(self, causal: bool) -> bool:
        width = self.query.shape[-1]
        return (
            self.half
            and self.mask is None
            and self.gpu.from_ampere
            and width == self.value.shape[-1]
            and width <= 256
            and not (causal and self.query.shape[2] != self.key.shape[2])
        )

    def _suits_efficient(self) -> bool:
        if self.query.dtype == torch.float64 or (self.query.dtype == torch.bfloat16 and not self.gpu.from_ampere):
            return False
        alignment = 1
        if self.gpu.from_volta and (self.half or self.gpu.from_ampere):
            alignment = 8 if self.half else 4
        offsets = (tensor.storage_offset() % alignment for tensor in self.tensors)
        return all(width % alignment == 0 for width in self._widths()) and not any(offsets)

    def added_mask(self) -> torch.Tensor | None:
        """The mask as numbers that are added (convert_boolean_attn_mask)."""
        if self.mask is None or self.mask.dtype != torch.bool:
            return self.mask
        kind: dict[str, Any] = {"dtype": self.query.dtype, "device": self.query.device}
        nothing, hidden = torch.scalar_tensor(0.0, **kind), torch.scalar_tensor(float("-inf"), **kind)
        return torch.where(self.mask, nothing, hidden)

    def aligned_mask(self) -> torch.Tensor | None:
        """The mask for the memory-efficient kernel (preprocess_mask)."""
        mask = self.added_mask()
        if mask is None:
            return None
        if mask.stride(-1) != 1 or any(stride % _MASK_ALIGNMENT for stride in mask.stride()[:-1]):
            length = mask.shape[-1]
            padding = (0, _MASK_ALIGNMENT - length % _MASK_ALIGNMENT)
            mask = torch.nn.functional.pad(mask, padding)[..., :length]
        return mask.expand(*self.query.shape[:3], self.key.shape[2])

    def compute(self, dropout: float, causal: bool, scale: float | None) -> torch.Tensor:
        """The result, by the kernel that is chosen."""
        aten, backend = torch.ops.aten, self.backend(dropout, causal)
        result: tuple[torch.Tensor, ...]
        if backend == "cudnn":
            result = aten._scaled_dot_product_cudnn_attention(
                *self.tensors, self.added_mask(), self.wants_gradient, dropout, causal, False, scale=scale
            )
        elif backend == "flash":
            return self._by_flash(dropout, causal, scale)
        elif backend == "efficient":
            result = aten._scaled_dot_product_efficient_attention(
                *self.tensors, self.aligned_mask(), self.wants_gradient, dropout, causal, scale=scale
            )
        else:
            grouped = {"enable_gqa": True} if self.grouped else {}
            result = aten._scaled_dot_product_attention_math(
                *self.tensors, self.added_mask(), dropout, causal, scale=scale, **grouped
            )
        return result[0]

    def _by_flash(self, dropout: float, causal: bool, scale: float | None) -> torch.Tensor:
        """Heads are padded to a multiple of 8."""
        width = self.query.shape[-1]
        missing = -width % 8
        padded = [torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor for tensor in self.tensors]
        result: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            *padded, dropout, causal, False, scale=width**-0.5 if scale is None else scale
        )[0]
        return result[..., :width] if missing else result


def attention(gpu: Callable[[], AttentionTraits]) -> Callable[..., torch.Tensor]:
    """What stands for the composite operator on a GPU, which is asked when the operator runs."""

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
        tensors = [query, key, value]
        if _SINCE_2_14 and all(tensor.dim() == 3 for tensor in tensors):
            if attn_mask is not None and attn_mask.dim() == 3:
                attn_mask = attn_mask.unsqueeze(0)
            of_one = _Attention(gpu(), [tensor.unsqueeze(0) for tensor in tensors], attn_mask, enable_gqa)
            return of_one.compute(dropout_p, is_causal, scale).squeeze(0)
        return _Attention(gpu(), tensors, attn_mask, enable_gqa).compute(dropout_p, is_causal, scale)

    return scaled_dot_product_attention
