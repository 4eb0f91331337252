"""Autocast and attention as a GPU has them, for tensors on the meta device, where torch has neither.

torch casts by dispatch keys that tensors of the meta device lack, and hands attention to its slowest kernel there. A
function mode does the same one floor higher: it sees each call of a torch function with its name.

Left out: functions that autocast widens to the widest argument (`addcmul`, `cross`, ...), which promote types anyway.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NARROW = frozenset((
    "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "convolution", "prelu", "linear", "addmm", "addmv", "addr", "matmul", "__matmul__", "__rmatmul__", "einsum",
    "mm", "mv", "bmm", "baddbmm", "addbmm", "chain_matmul", "multi_dot", "gru_cell", "lstm_cell", "rnn_tanh_cell",
    "rnn_relu_cell", "scaled_dot_product_attention",
))  # fmt: skip
"""Functions whose tensors autocast makes 16 bits wide (aten/src/ATen/autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP)."""

WIDE = frozenset((
    "softmax", "log_softmax", "layer_norm", "group_norm", "cumsum", "cumprod", "sum", "prod", "pow", "__pow__",
    "__rpow__", "exp", "expm1", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "acos", "asin", "cosh",
    "erfinv", "sinh", "tan", "softplus", "softmin", "norm", "frobenius_norm", "nuclear_norm", "renorm", "logsumexp",
    "dist", "cdist", "pdist", "cosine_similarity", "nll_loss", "nll_loss_nd", "nll_loss2d", "cross_entropy_loss",
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "poisson_nll_loss", "cosine_embedding_loss",
    "hinge_embedding_loss", "margin_ranking_loss", "triplet_margin_loss", "multi_margin_loss", "soft_margin_loss",
    "multilabel_margin_loss", "binary_cross_entropy_with_logits",
))  # fmt: skip
"""Functions whose tensors autocast makes float32 (the same file, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE)."""

_HALVES = (torch.float16, torch.bfloat16)


class CudaLike(TorchFunctionMode):
    """Casts as autocast does, and hands attention to one fused kernel."""

    def __init__(self, narrow: torch.dtype | None) -> None:
        """Prepare; `narrow` is the type of autocast, or None for no casts."""
        super().__init__()
        self.narrow = narrow
        self._cast_weights: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `function` with its tensors cast."""
        named = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if self.narrow is not None and name in NARROW:
            args, named = self._cast(args, self.narrow), self._cast(named, self.narrow)
        elif self.narrow is not None and name in WIDE:
            args, named = self._cast(args, torch.float32), self._cast(named, torch.float32)
        if name == "scaled_dot_product_attention":
            return _attend(*args, **named)
        if isinstance(function, types.FunctionType) and function.__module__ == functional.__name__ and name not in WIDE:
            with self, _not_asked_again():
                return function(*args, **named)
        return function(*args, **named)

    def _cast(self, value: Any, wanted: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return self._cast_tensor(value, wanted)
        if isinstance(value, dict):
            return {key: self._cast(item, wanted) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._cast(item, wanted) for item in value)
        return value

    def _cast_tensor(self, tensor: Tensor, wanted: torch.dtype) -> Tensor:
        eligible = tensor.dtype in _HALVES or tensor.dtype is torch.float32
        if not eligible or tensor.dtype is wanted:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and wanted in _HALVES):
            return tensor.to(wanted)
        if id(tensor) not in self._cast_weights:  # a weight is cast once a forward pass
            self._cast_weights[id(tensor)] = tensor, tensor.to(wanted)
        return self._cast_weights[id(tensor)][1]


@contextlib.contextmanager
def _not_asked_again() -> Iterator[None]:
    """Let functions written in Python run their bodies, whose own calls the mode sees, without asking the mode."""
    with contextlib.ExitStack() as stack:
        for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
            if hasattr(functional, name):
                stack.enter_context(mock.patch.object(functional, name, _no))
        yield


def _no(*_: object) -> bool:
    return False


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention `(B, heads, tokens, channels)` in one kernel forward and one backward, whichever the device's is."""
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return output
