"""Models of one operator each, and their training under the stub driver: `python operators.py TASK.json`.

The operators are those that the vision models of torchvision, timm and transformers call. Each runs on a learned input,
so that its backward runs too. It knows nothing of the project.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

Tensor = torch.Tensor
IMAGE, TOKENS, HEADS = (16, 24, 29, 31), (8, 197, 96), (4, 3, 67, 32)
"""Shapes of inputs `(B, C, H, W)`, `(B, positions, C)` and `(B, heads, positions, width)`, odd on purpose."""


@dataclass(frozen=True)
class Operator:
    """One model of the sweep.

    Attributes:
        build: Makes the module, or is itself a function of the input.
        shape: Of the input.
        is_module: Whether `build` makes a module.
        layouts: Of the input: `contiguous`, `channels_last`, `transposed` (the last two dimensions).
        precisions: That the operator is tried at.
    """

    build: Callable[..., Any]
    shape: tuple[int, ...] = IMAGE
    is_module: bool = False
    layouts: tuple[str, ...] = ("contiguous",)
    precisions: tuple[str, ...] = ("float32", "bf16")


class Function(nn.Module):
    """A function of the input as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Residual(nn.Module):
    """`x + inner(x)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


class Learned(nn.Module):
    """`function(x, parameter)`, the parameter of the shape given."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


class Checkpointed(nn.Module):
    """A segment that is run again in the backward."""

    def __init__(self, inner: nn.Module, **options: Any) -> None:
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, **self.options)


class CheckpointedSequence(nn.Module):
    """As timm's `checkpoint_seq`."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Any:
        return checkpoint_sequential(self.inner, 2, x, use_reentrant=False)


def attend(x: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attention of the input to itself."""
    return F.scaled_dot_product_attention(x, x * 1.0, x * 2.0, attn_mask=mask, **options)


def split_heads(x: Tensor, heads: int = 4) -> tuple[Tensor, ...]:
    """Queries, keys and values as timm's attention makes them."""
    batch, length, width = x.shape
    return x.repeat(1, 1, 3).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    """The output of a recurrent layer, without its state."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(24, 16, batch_first=True, **options)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)[0]

    return Layer()


BOTH = ("contiguous", "channels_last")


def _activations() -> dict[str, Operator]:
    functions: dict[str, Callable[[Tensor], Any]] = {
        name: getattr(F, name)
        for name in [
            "relu",
            "relu6",
            "gelu",
            "silu",
            "mish",
            "hardswish",
            "hardsigmoid",
            "hardtanh",
            "leaky_relu",
            "elu",
            "selu",
            "celu",
            "softplus",
            "logsigmoid",
            "tanhshrink",
            "softsign",
            "softshrink",
            "hardshrink",
        ]
    }
    functions |= {
        name: getattr(torch, name) for name in ["sigmoid", "tanh", "exp", "sin", "cos", "erf", "abs", "neg", "square"]
    }
    functions |= {
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu_inplace": lambda x: F.relu(x * 2, inplace=True),
        "silu_inplace": lambda x: F.silu(x * 2, inplace=True),
        "hardswish_inplace": lambda x: F.hardswish(x * 2, inplace=True),
        "leaky_relu_inplace": lambda x: F.leaky_relu(x * 2, inplace=True),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "squared_relu": lambda x: F.relu(x).square(),
        "swiglu": lambda x: F.silu(x.chunk(2, 1)[0]) * x.chunk(2, 1)[1],
        "glu": lambda x: F.glu(x, dim=1),
        "log": lambda x: torch.log(x.abs() + 1),
        "log1p": lambda x: torch.log1p(x.abs()),
        "log2": lambda x: torch.log2(x.abs() + 1),
        "sqrt": lambda x: torch.sqrt(x + 1),
        "rsqrt": lambda x: torch.rsqrt(x + 1),
        "reciprocal": lambda x: 1 / (x + 2),
        "power": lambda x: x**3,
        "power_real": lambda x: x.abs() ** 0.5,
        "power_of_number": lambda x: torch.pow(2, x) + x * 10000 ** torch.arange(31.0, device=x.device),
        "subtract_from": lambda x: (1 - x) * 2 + torch.rsub(x, 3),
        "hardtanh_inplace": lambda x: F.relu6(x * 2, inplace=True),
        "clamp_between": lambda x: x.clamp(x.detach() - 1, x.detach() + 1),
        "compare": lambda x: x * (x >= 0.5) + x * (x < x.mean()) + x * (x != 0) + x * (x <= 1) + x * x.eq(0),
        "logical": lambda x: x * ((x > 0) | ~(x < 1)).logical_not().logical_or(x > 2).logical_and(x < 3),
        "divide_rounded": lambda x: (
            x + torch.div(x, 2, rounding_mode="floor") + torch.floor_divide(x.detach(), 3) + x.detach() % 2
        ),
        "clamp": lambda x: x.clamp(-1, 1),
        "clamp_least": lambda x: x.clamp(min=0.1),
        "maximum": lambda x: torch.maximum(x, x * 2),
        "where": lambda x: torch.where(x > 0, x, x * 0.1),
        "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
        "addcmul": lambda x: torch.addcmul(x, x * 2, x * 3),
        "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
        "divide": lambda x: x / (x * x + 1),
        "tensor_to_float": lambda x: x.float() * 2,
        "tensor_to_half": lambda x: x.to(torch.bfloat16) * 2,
        "clone": lambda x: x.clone() * 2,
        "detach": lambda x: x + x.detach().mul(2),
        "atan2": lambda x: torch.atan2(x, x + 1),
        "round": lambda x: x + x.round() + x.floor() + x.sign(),
        "nan_to_num": lambda x: torch.nan_to_num(x),
        "cumsum": lambda x: x.cumsum(1),
    }
    return {name: Operator(function, precisions=("float32",)) for name, function in functions.items()}


def _reductions() -> dict[str, Operator]:
    functions: dict[str, Callable[[Tensor], Any]] = {
        "sum_all": lambda x: x.sum(),
        "sum_space": lambda x: x.sum((2, 3)),
        "sum_channels": lambda x: x.sum(1),
        "sum_batch": lambda x: x.sum(0, keepdim=True),
        "mean_all": lambda x: x.mean(),
        "mean_space": lambda x: x.mean((2, 3), keepdim=True),
        "mean_channels": lambda x: x.mean(1, keepdim=True),
        "mean_last": lambda x: x.mean(-1),
        "variance_all": lambda x: x.var(),
        "variance_space": lambda x: x.var((2, 3), keepdim=True),
        "variance_channels": lambda x: x.var(1, keepdim=True, unbiased=False),
        "variance_mean": lambda x: torch.var_mean(x, dim=(1, 2, 3), keepdim=True)[0],
        "deviation_channels": lambda x: x.std(1, keepdim=True),
        "deviation_space": lambda x: x.std((2, 3)),
        "largest_all": lambda x: x.max(),
        "largest_channels": lambda x: x.max(1)[0],
        "largest_last": lambda x: x.max(-1, keepdim=True)[0],
        "least_last": lambda x: x.min(-1)[0],
        "extreme_channels": lambda x: x.amax(1),
        "extreme_space": lambda x: x.amax((2, 3), keepdim=True),
        "least_space": lambda x: x.amin((2, 3)),
        "product": lambda x: x.prod(1),
        "norm_channels": lambda x: x.norm(dim=1),
        "norm_space": lambda x: x.norm(p=2, dim=(2, 3), keepdim=True),
        "norm_last": lambda x: x.norm(p=2, dim=-1),
        "norm_one": lambda x: x.norm(p=1, dim=1),
        "norm_all": lambda x: x.norm(),
        "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
        "normalize_channels": lambda x: F.normalize(x, dim=1),
        "normalize_last": lambda x: F.normalize(x, dim=-1),
        "cosine_similarity": lambda x: F.cosine_similarity(x, x * 2, dim=1),
        "cross_distance": lambda x: torch.cdist(x.flatten(2), x.flatten(2) * 2),
        "log_sum_exp": lambda x: torch.logsumexp(x, 1),
        "log_sum_exp_last": lambda x: x.logsumexp(-1, keepdim=True),
        "softmax_channels": lambda x: x.softmax(1),
        "softmax_last": lambda x: x.softmax(-1),
        "softmax_rows": lambda x: x.flatten(2).softmax(2),
        "softmax_float": lambda x: x.softmax(-1, dtype=torch.float32),
        "log_softmax": lambda x: x.log_softmax(1),
        "log_softmax_last": lambda x: x.log_softmax(-1),
        "argmax": lambda x: x * x.argmax(1, keepdim=True),
        "top_k": lambda x: x.topk(5, dim=-1)[0],
        "sort": lambda x: x.sort(-1)[0],
        "sort_long": lambda x: x.flatten().sort()[0],
        "all": lambda x: x * (x > 0).all(1, keepdim=True) + x * (x < 2).all(),
        "asserted": lambda x: _asserted(x),
        "any": lambda x: x * (x > 0).any(1, keepdim=True),
        "count": lambda x: x * (x > 0).sum(1, keepdim=True),
    }
    return {name: Operator(function, layouts=BOTH, precisions=("float32",)) for name, function in functions.items()}


def _asserted(x: Tensor) -> Tensor:
    torch._assert_async((x < 2).all())
    return x * 2


def _shapes() -> dict[str, Operator]:
    functions: dict[str, Callable[[Tensor], Any]] = {
        "concatenate_channels": lambda x: torch.cat([x, x * 2], 1),
        "concatenate_last": lambda x: torch.cat([x, x * 2, x * 3], -1),
        "stack": lambda x: torch.stack([x, x * 2], 1),
        "stack_last": lambda x: torch.stack([x, x * 2], -1),
        "flatten": lambda x: x.flatten(1) * 2,
        "permute": lambda x: x.permute(0, 2, 3, 1) * 2,
        "permute_contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous(),
        "transpose_reshape": lambda x: x.flatten(2).transpose(1, 2).reshape(16, -1),
        "channel_shuffle": lambda x: x.view(16, 2, 12, 29, 31).transpose(1, 2).reshape(16, 24, 29, 31),
        "channel_shuffle_function": lambda x: F.channel_shuffle(x, 3),
        "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
        "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :28, :30], 2),
        "eye": lambda x: x[..., :29] * torch.eye(29, 29, device=x.device),
        "split_sizes": lambda x: sum(part.sum(1) for part in x.split([4, 8, 12], 1)),
        "arange": lambda x: (
            x * torch.arange(1, 32, device=x.device) + torch.arange(0.5, 16, 0.5, dtype=x.dtype, device=x.device)
        ),
        "split": lambda x: sum(part * 2 for part in x.split(8, 1)),
        "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        "unbind": lambda x: sum(part * 2 for part in x.unbind(2)),
        "slice": lambda x: x[:, :, 1::2, ::2] * 2,
        "slice_space": lambda x: torch.cat(
            [x[:, :, 0::2, 0::2][:, :, :14, :15], x[:, :, 1::2, 1::2][:, :, :14, :15]], 1
        ),
        "select": lambda x: x[:, 0] * 2,
        "narrow": lambda x: x.narrow(1, 3, 7) * 2,
        "index_list": lambda x: x[:, [3, 1, 2]],
        "index_select": lambda x: x.index_select(1, torch.arange(0, 24, 2, device=x.device)),
        "index_tensor": lambda x: x[:, torch.arange(0, 24, 2, device=x.device)],
        "gather": lambda x: x.gather(1, torch.zeros((16, 5, 29, 31), dtype=torch.int64, device=x.device)),
        "scatter": lambda x: x.scatter(
            1, torch.zeros((16, 5, 29, 31), dtype=torch.int64, device=x.device), x[:, :5] * 2
        ),
        "average_of_one_sample": lambda x: F.adaptive_avg_pool2d(x[:1].relu(), (7, 5)),
        "scatter_add": lambda x: x.scatter_add(
            1, torch.zeros((16, 5, 29, 31), dtype=torch.int64, device=x.device), x[:, :5] * 2
        ),
        "take_along": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
        "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1) * 2,
        "repeat": lambda x: x.repeat(1, 2, 1, 1),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
        "tile": lambda x: x.tile(1, 2, 1, 1),
        "roll": lambda x: x.roll((2, 3), (2, 3)),
        "roll_one": lambda x: x.roll(1, 1),
        "flip": lambda x: x.flip(2),
        "flip_both": lambda x: x.flip((2, 3)),
        "rotate": lambda x: torch.rot90(x, 1, (2, 3)),
        "pad_zeros": lambda x: F.pad(x, (1, 2, 3, 4)),
        "pad_negative": lambda x: F.pad(x, (-1, -2, 0, 0)),
        "pad_reflect": lambda x: F.pad(x, (1, 2, 3, 4), mode="reflect"),
        "pad_replicate": lambda x: F.pad(x, (1, 2, 3, 4), mode="replicate"),
        "pad_circular": lambda x: F.pad(x, (1, 2, 3, 4), mode="circular"),
        "unfold": lambda x: F.unfold(x, 3, padding=1),
        "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (29, 31), 3, padding=1),
        "unfold_stride": lambda x: F.unfold(x, 2, stride=2),
        "unfold_view": lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).contiguous(),
        "windows": lambda x: (
            x[:, :, :28, :28].reshape(16, 24, 4, 7, 4, 7).permute(0, 2, 4, 3, 5, 1).contiguous().view(-1, 49, 24)
        ),
        "triangle": lambda x: x.tril(1),
        "diagonal": lambda x: x.diagonal(dim1=-2, dim2=-1) * 2,
        "meshgrid": lambda x: (
            x + torch.stack(torch.meshgrid(torch.arange(29.0), torch.arange(31.0), indexing="ij")).sum(0).to(x.device)
        ),
        "one_hot": lambda x: (
            x[:, :3] * F.one_hot(torch.zeros(16, dtype=torch.int64, device=x.device), 3)[..., None, None]
        ),
        "outer_add": lambda x: x.unsqueeze(2) + x[:, :, :1].unsqueeze(3),
        "broadcast_add": lambda x: x + x.mean((2, 3), keepdim=True),
        "broadcast_multiply": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        "zeros_like": lambda x: x + torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 2),
        "new_tensors": lambda x: x * x.new_ones((16, 1, 1, 1)) + x.new_zeros(31) + x.new_empty((24, 1, 1)).zero_(),
        "drop_path": lambda x: x * x.new_empty((16, 1, 1, 1)).bernoulli_(0.9).div_(0.9),
        "random_mask": lambda x: x * torch.rand((16, 1, 29, 31), device=x.device).floor(),
        "copy_into": lambda x: torch.zeros_like(x).copy_(x) * 2,
        "assign_slice": lambda x: _assigned(x),
        "fourier": lambda x: torch.fft.fft2(x.float(), norm="ortho").real,
        "fourier_real": lambda x: torch.fft.irfft2(torch.fft.rfft2(x.float(), norm="ortho"), s=(29, 31), norm="ortho"),
        "view_as_complex": lambda x: torch.view_as_real(
            torch.view_as_complex(x[..., :30].float().contiguous().reshape(16, 24, 29, 15, 2)) * 2
        ),
        "item": lambda x: x * x.mean().item(),
        "boolean_mask": lambda x: x[x > 0],
        "nonzero": lambda x: x * len(x.nonzero()),
        "branch": lambda x: x * 2 if x.sum() > 0 else x * 3,
        "to_host": lambda x: x * x.sum().cpu().to(x.device),
        "unique": lambda x: x * x.detach().unique().sum(),
    }
    return {name: Operator(function, layouts=BOTH, precisions=("float32",)) for name, function in functions.items()}


def _assigned(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, 1:5] = x[:, 1:5] * 2
    made[:, :, 3] = 1.0
    return made


def _sampling() -> dict[str, Operator]:
    functions: dict[str, Callable[[Tensor], Any]] = {
        "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
        "max_pool_same": lambda x: F.max_pool2d(x, 5, 1, 2),
        "max_pool_ceil": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        "max_pool_line": lambda x: F.max_pool1d(x.flatten(2), 3),
        "average_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
        "average_pool_uncounted": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
        "average_pool_line": lambda x: F.avg_pool1d(x.flatten(2), 3),
        "adaptive_average": lambda x: F.adaptive_avg_pool2d(x, (7, 5)),
        "adaptive_average_one": lambda x: F.adaptive_avg_pool2d(x, 1),
        "adaptive_average_line": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
        "adaptive_largest": lambda x: F.adaptive_max_pool2d(x, (7, 5)),
        "adaptive_largest_one": lambda x: F.adaptive_max_pool2d(x, 1),
        "power_pool": lambda x: F.lp_pool2d(x, 2, 2),
        "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        "nearest_smaller": lambda x: F.interpolate(x, size=(13, 7), mode="nearest"),
        "nearest_exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        "bilinear_aligned": lambda x: F.interpolate(x, size=(40, 23), mode="bilinear", align_corners=True),
        "bilinear_antialias": lambda x: F.interpolate(x, size=(20, 13), mode="bilinear", antialias=True),
        "bicubic": lambda x: F.interpolate(x, size=(40, 23), mode="bicubic", align_corners=False),
        "bicubic_antialias": lambda x: F.interpolate(x, size=(20, 13), mode="bicubic", antialias=True),
        "linear_interpolation": lambda x: F.interpolate(x.flatten(2), size=100, mode="linear"),
        "area": lambda x: F.interpolate(x, size=(7, 5), mode="area"),
        "grid_sample": lambda x: F.grid_sample(x, x[:, :2, :20, :22].permute(0, 2, 3, 1), align_corners=False),
        "affine_grid": lambda x: F.grid_sample(
            x, F.affine_grid(x[:, :2, :3, 0].float(), [16, 24, 11, 13], align_corners=False), align_corners=False
        ),
    }
    of_all = ("affine_grid", "grid_sample")
    for name in [name for name in functions if name not in of_all]:
        functions[f"{name}_of_part"] = lambda x, function=functions[name]: function(x[:, ::2])  # type: ignore[misc]
    return {name: Operator(function, layouts=BOTH, precisions=("float32",)) for name, function in functions.items()}


def _products() -> dict[str, Operator]:
    def module(build: Callable[[], nn.Module], shape: tuple[int, ...] = TOKENS, **options: Any) -> Operator:
        return Operator(build, shape, True, **options)

    both = ("contiguous", "transposed")
    return {
        "linear": module(lambda: nn.Linear(96, 200), layouts=both),
        "linear_without_bias": module(lambda: nn.Linear(96, 200, bias=False), layouts=both),
        "linear_2d": module(lambda: nn.Linear(96, 10), (64, 96)),
        "linear_4d": module(lambda: nn.Linear(31, 10), IMAGE, layouts=BOTH),
        "linear_one": module(lambda: nn.Linear(96, 1)),
        "linear_after_permute": module(
            lambda: nn.Sequential(Function(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(24, 50)), IMAGE, layouts=BOTH
        ),
        "mlp": module(lambda: nn.Sequential(nn.Linear(96, 200), nn.GELU(), nn.Dropout(0.1), nn.Linear(200, 96))),
        "matmul": Operator(lambda x: x @ x.transpose(-2, -1), TOKENS, layouts=both),
        "matmul_4d": Operator(lambda x: (x * 0.1) @ x.transpose(-2, -1), HEADS, layouts=both),
        "matmul_chain": Operator(lambda x: ((x * 0.1) @ x.transpose(-2, -1)).softmax(-1) @ x, HEADS, layouts=both),
        "matmul_broadcast": module(lambda: Learned(torch.matmul, (96, 40)), layouts=both),
        "matmul_left": module(lambda: Learned(lambda x, w: w @ x, (50, 197)), layouts=both),
        "matmul_left_4d": module(lambda: Learned(lambda x, w: w @ x, (3, 50, 67)), HEADS),
        "matmul_vector": module(lambda: Learned(lambda x, w: x @ w, (96,))),
        "bmm": Operator(lambda x: torch.bmm(x, x.transpose(1, 2)), TOKENS),
        "baddbmm": Operator(lambda x: torch.baddbmm(x[:, :, :1], x, x.transpose(1, 2)), TOKENS),
        "addmm": module(lambda: Learned(lambda x, b, w: torch.addmm(b, x, w), (10,), (96, 10)), (64, 96)),
        "einsum": Operator(lambda x: torch.einsum("bhqd,bhkd->bhqk", x, x), HEADS, layouts=both),
        "einsum_talking_heads": module(
            lambda: Learned(lambda x, w: torch.einsum("bhqk,hg->bgqk", x, w), (3, 5)), HEADS
        ),
        "einsum_outer": Operator(lambda x: torch.einsum("bnc,bnd->bcd", x, x), TOKENS),
        "bilinear_product": module(_Bilinear, (64, 96)),
        "relative_embedding": module(_RelativePositions, HEADS),
        "embedding": module(lambda: _Embedding(nn.Embedding(50, 24)), (64, 24)),
        "embedding_padded": module(lambda: _Embedding(nn.Embedding(50, 24, padding_idx=0)), (64, 24)),
        "position_table": module(lambda: Learned(lambda x, w: x + w, (1, 197, 96))),
        "class_token": module(lambda: Learned(lambda x, w: torch.cat([w.expand(8, -1, -1), x], 1), (1, 1, 96))),
        "layer_scale": module(lambda: Learned(lambda x, w: x + x * w, (96,))),
        "inverse": Operator(lambda x: torch.linalg.inv(x[..., :32, :]), HEADS, precisions=("float32",)),
        "solve": Operator(
            lambda x: torch.linalg.solve(x[..., :32, :], x[..., 32:64, :]), HEADS, precisions=("float32",)
        ),
        "cholesky": Operator(lambda x: torch.linalg.cholesky(x[..., :32, :]), HEADS, precisions=("float32",)),
        "eigenvalues": Operator(lambda x: torch.linalg.eigvalsh(x[..., :32, :]), HEADS, precisions=("float32",)),
        "singular_values": Operator(lambda x: torch.linalg.svd(x[..., :32, :])[1], HEADS, precisions=("float32",)),
        "qr": Operator(lambda x: torch.linalg.qr(x)[0], HEADS, precisions=("float32",)),
        "determinant": Operator(lambda x: torch.linalg.det(x[..., :32, :]), HEADS, precisions=("float32",)),
        "lstm": module(lambda: recurrent(nn.LSTM), (8, 17, 24)),
        "lstm_both_ways": module(lambda: recurrent(nn.LSTM, bidirectional=True, num_layers=2), (8, 17, 24)),
        "gru": module(lambda: recurrent(nn.GRU), (8, 17, 24)),
        "rnn": module(lambda: recurrent(nn.RNN), (8, 17, 24)),
    }


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(96, 96, 5)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x)


class _Embedding(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Any:
        return self.table(torch.zeros((64, 7), dtype=torch.int64, device=x.device)) + x[:, None]


class _RelativePositions(nn.Module):
    """A bias read from a table by an index that is a buffer, as windowed attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(133, 3))
        positions = torch.arange(67)
        self.register_buffer("index", positions[:, None] - positions[None] + 66)

    def forward(self, x: Tensor) -> Any:
        bias = self.table[self.index.view(-1)].view(67, 67, 3).permute(2, 0, 1).contiguous()
        return ((x @ x.transpose(-2, -1)) + bias.unsqueeze(0)).softmax(-1) @ x


def _attention() -> dict[str, Operator]:
    def learned(function: Callable[..., Tensor], *shapes: tuple[int, ...], shape: tuple[int, ...] = HEADS) -> Operator:
        return Operator(lambda: Learned(function, *shapes), shape, True)

    made: dict[str, Operator] = {
        "attention": Operator(attend, HEADS, layouts=("contiguous", "transposed")),
        "attention_heads_last": Operator(lambda x: attend(x.transpose(1, 2)).transpose(1, 2), HEADS),
        "attention_tokens": Operator(
            lambda x: F.scaled_dot_product_attention(*split_heads(x)).transpose(1, 2).reshape(8, 197, 96), TOKENS
        ),
        "attention_causal": Operator(lambda x: attend(x, is_causal=True), HEADS),
        "attention_dropout": Operator(lambda x: attend(x, dropout_p=0.1), HEADS),
        "attention_scaled": Operator(lambda x: attend(x, scale=0.3), HEADS),
        "attention_3d": Operator(lambda x: attend(x), TOKENS),
        "attention_5d": Operator(lambda x: attend(x), (2, 3, 4, 49, 32)),
        "attention_one_query": Operator(lambda x: F.scaled_dot_product_attention(x[:, :, :1], x, x * 2), HEADS),
        "attention_fewer_keys": Operator(
            lambda x: F.scaled_dot_product_attention(x, x[:, :, :20], x[:, :, :20] * 2), HEADS
        ),
        "attention_wide_values": Operator(
            lambda x: F.scaled_dot_product_attention(x, x * 2, torch.cat([x, x], -1)), HEADS
        ),
        "attention_narrow_values": Operator(lambda x: F.scaled_dot_product_attention(x, x * 2, x[..., :16]), HEADS),
        "attention_odd_width": Operator(lambda x: attend(x[..., :27]), HEADS),
        "attention_width_20": Operator(lambda x: attend(x[..., :20]), HEADS),
        "attention_width_160": Operator(lambda x: attend(x), (4, 3, 67, 160)),
        "attention_width_320": Operator(lambda x: attend(x), (4, 3, 67, 320)),
        "attention_grouped": Operator(
            lambda x: F.scaled_dot_product_attention(x, x[:, :1] * 2, x[:, :1] * 3, enable_gqa=True), HEADS
        ),
        "attention_math_grouped": Operator(
            lambda x: F.scaled_dot_product_attention(
                x[:, :2, :, :27], x[:, :1, :, :27], x[:, :1, :, :27], enable_gqa=True
            ),
            HEADS,
        ),
        "attention_one_key_head": Operator(
            lambda x: F.scaled_dot_product_attention(x, x[:, :1] * 2, x[:, :1] * 3), HEADS
        ),
        "attention_one_key_head_odd_width": Operator(
            lambda x: F.scaled_dot_product_attention(x[..., :27], x[:, :1, :, :27] * 2, x[:, :1, :, :27] * 3), HEADS
        ),
        "attention_one_head_of_keys_only": Operator(
            lambda x: F.scaled_dot_product_attention(x, x[:, :1] * 2, x * 3), HEADS
        ),
        "attention_broadcast_keys": Operator(
            lambda x: F.scaled_dot_product_attention(x, (x[:, :1] * 2).expand(-1, 3, -1, -1), x), HEADS
        ),
        "attention_constant_keys": Operator(lambda x: F.scaled_dot_product_attention(x, x.detach(), x.detach()), HEADS),
        "attention_math": Operator(lambda x: _with_math(x), HEADS),
        "attention_boolean_mask": Operator(
            lambda x: attend(x, torch.ones(67, 67, dtype=torch.bool).to(x.device)), HEADS
        ),
        "attention_fixed_mask": Operator(lambda x: attend(x, torch.zeros(67, 67).to(x.device)), HEADS),
        "attention_padding_mask": Operator(
            lambda x: attend(x, torch.ones(4, 1, 1, 67, dtype=torch.bool).to(x.device)), HEADS
        ),
        "attention_learned_mask": learned(attend, (1, 3, 67, 67)),
        "attention_learned_mask_per_sample": learned(attend, (4, 3, 67, 67)),
        "attention_learned_mask_2d": learned(attend, (67, 67)),
        "attention_learned_mask_64": learned(attend, (1, 4, 64, 64), shape=(6, 4, 64, 32)),
        "attention_learned_mask_permuted": learned(
            lambda x, w: attend(x, w.permute(2, 0, 1).contiguous().unsqueeze(0)), (67, 67, 3)
        ),
        "attention_learned_mask_expanded": learned(lambda x, w: attend(x, w.expand(4, 3, 67, 67)), (1, 3, 67, 67)),
        "attention_learned_mask_5d": learned(attend, (1, 4, 49, 49), shape=(2, 3, 4, 49, 32)),
        "attention_learned_mask_3d": learned(attend, (3, 67, 67)),
        "multihead": Operator(lambda: _SelfAttention(), TOKENS, True),
        "multihead_weights": Operator(lambda: _SelfAttention(need_weights=True), TOKENS, True),
        "transformer_layer": Operator(
            lambda: nn.TransformerEncoderLayer(96, 4, 200, batch_first=True, norm_first=True), TOKENS, True
        ),
    }
    return made


def _with_math(x: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return attend(x)


class _SelfAttention(nn.Module):
    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.layer, self.need_weights = nn.MultiheadAttention(96, 4, batch_first=True), need_weights

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x, x, need_weights=self.need_weights)[0]


def _layers() -> dict[str, Operator]:
    def module(
        build: Callable[[], nn.Module], shape: tuple[int, ...] = IMAGE, layouts: tuple[str, ...] = BOTH
    ) -> Operator:
        return Operator(build, shape, True, layouts if len(shape) == 4 else ("contiguous",))

    line = (16, 24, 301)
    cube = (4, 8, 9, 15, 17)
    made = {
        "convolution": module(lambda: nn.Conv2d(24, 32, 3, padding=1), layouts=BOTH),
        "convolution_without_bias": module(lambda: nn.Conv2d(24, 32, 3, bias=False)),
        "convolution_1x1": module(lambda: nn.Conv2d(24, 32, 1)),
        "convolution_patches": module(lambda: nn.Conv2d(24, 32, 4, stride=4)),
        "convolution_grouped": module(lambda: nn.Conv2d(24, 48, 3, groups=4)),
        "convolution_depthwise": module(lambda: nn.Conv2d(24, 24, 7, padding=3, groups=24), layouts=BOTH),
        "convolution_depthwise_packed": module(
            lambda: nn.Sequential(
                Function(lambda x: x.transpose(2, 3)),
                nn.Conv2d(24, 24, 3, groups=24),
                Function(lambda x: (x * x).transpose(2, 3)),
            )
        ),
        "convolution_depthwise_one_sample": module(
            lambda: nn.Sequential(
                Function(lambda x: (x * 2).transpose(0, 1).transpose(1, 2).unflatten(2, (14, 14))),
                nn.Conv2d(96, 96, 3, groups=96),
            ),
            (196, 1, 96),
        ),
        "convolution_depthwise_strided": module(lambda: nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False)),
        "convolution_depthwise_wider": module(lambda: nn.Conv2d(24, 48, 3, groups=24)),
        "convolution_dilated": module(lambda: nn.Conv2d(24, 32, 3, dilation=2)),
        "convolution_same": module(lambda: nn.Conv2d(24, 32, 4, padding="same")),
        "convolution_reflect": module(lambda: nn.Conv2d(24, 32, 3, padding=1, padding_mode="reflect")),
        "convolution_line": module(lambda: nn.Conv1d(24, 32, 3), line),
        "convolution_line_depthwise": module(lambda: nn.Conv1d(24, 24, 3, groups=24), line),
        "convolution_eca": module(lambda: _ChannelAttention()),
        "convolution_cube": module(lambda: nn.Conv3d(8, 12, 3), cube),
        "convolution_cube_depthwise": module(lambda: nn.Conv3d(8, 8, 3, groups=8), cube),
        "convolution_transposed": module(lambda: nn.ConvTranspose2d(24, 16, 2, 2)),
        "convolution_transposed_grouped": module(lambda: nn.ConvTranspose2d(24, 24, 3, 2, 1, 1, groups=24)),
        "convolution_standardized": module(lambda: _Standardized()),
        "convolution_dynamic": module(
            lambda: Learned(lambda x, w: F.conv2d(x.reshape(1, -1, 29, 31), w, groups=16), (128, 24, 3, 3)),
            layouts=("contiguous",),
        ),
        "batch_norm": module(lambda: nn.BatchNorm2d(24), layouts=BOTH),
        "batch_norm_plain": module(lambda: nn.BatchNorm2d(24, affine=False)),
        "batch_norm_untracked": module(lambda: nn.BatchNorm2d(24, track_running_stats=False)),
        "batch_norm_frozen": module(lambda: nn.BatchNorm2d(24).eval()),
        "batch_norm_line": module(lambda: nn.BatchNorm1d(24), line),
        "batch_norm_rows": module(lambda: nn.BatchNorm1d(96), (64, 96)),
        "batch_norm_cube": module(lambda: nn.BatchNorm3d(8), cube),
        "batch_norm_function": module(lambda: _BatchNormWeights()),
        "instance_norm": module(lambda: nn.InstanceNorm2d(24, affine=True)),
        "group_norm": module(lambda: nn.GroupNorm(4, 24), layouts=BOTH),
        "group_norm_one": module(lambda: nn.GroupNorm(1, 24)),
        "group_norm_tokens": module(lambda: nn.GroupNorm(4, 96), (8, 96, 197)),
        "layer_norm": module(lambda: nn.LayerNorm(96), TOKENS),
        "layer_norm_plain": module(lambda: nn.LayerNorm(96, elementwise_affine=False), TOKENS),
        "layer_norm_unbiased": module(lambda: nn.LayerNorm(96, bias=False), TOKENS),
        "layer_norm_image": module(
            lambda: nn.Sequential(
                Function(lambda x: x.permute(0, 2, 3, 1)), nn.LayerNorm(24), Function(lambda x: x.permute(0, 3, 1, 2))
            )
        ),
        "layer_norm_last": module(lambda: nn.LayerNorm(31), layouts=BOTH),
        "layer_norm_many_rows": module(lambda: nn.LayerNorm(8), (70000, 8)),
        "layer_norm_one_sample": module(lambda: _one_sample(nn.LayerNorm(96)), (196, 1, 96)),
        "rms_norm": module(lambda: nn.RMSNorm(96), TOKENS, layouts=("contiguous", "transposed")),
        "rms_norm_one_sample": module(lambda: _one_sample(nn.RMSNorm(96)), (196, 1, 96)),
        "rms_norm_many_rows": module(lambda: nn.RMSNorm(8), (70000, 8), layouts=("contiguous", "transposed")),
        "rms_norm_plain": module(lambda: nn.RMSNorm(96, elementwise_affine=False), TOKENS),
        "rms_norm_by_hand": module(
            lambda: Learned(lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w, (96,)), TOKENS
        ),
        "local_response_norm": module(lambda: nn.LocalResponseNorm(5)),
        "dropout": module(lambda: nn.Dropout(0.3), layouts=BOTH),
        "dropout_inplace": module(lambda: nn.Sequential(Function(lambda x: x * 2), nn.Dropout(0.3, inplace=True))),
        "dropout_channels": module(lambda: nn.Dropout2d(0.3)),
        "alpha_dropout": module(lambda: nn.AlphaDropout(0.3)),
        "prelu": module(lambda: nn.PReLU(24), layouts=BOTH),
        "prelu_one": module(lambda: nn.PReLU()),
        "rrelu": module(lambda: nn.RReLU()),
        "squeeze_excite": module(lambda: _SqueezeExcite()),
        "weight_norm": module(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(96, 50)), TOKENS),
        "weight_norm_old": module(lambda: nn.utils.weight_norm(nn.Linear(96, 50)), TOKENS),
        "spectral_norm": module(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(96, 50)), TOKENS),
        "upsample": module(lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    }
    return made


class _ChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x.mean((2, 3)).view(16, 1, -1)).view(16, -1, 1, 1).sigmoid()
        return x * y.expand_as(x)


class _Standardized(nn.Module):
    """A weight that is normalised by batch norm, as in timm's StdConv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 32, 3)

    def forward(self, x: Tensor) -> Any:
        weight = F.batch_norm(self.conv.weight.reshape(1, 32, -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.conv.weight), self.conv.bias)


class _BatchNormWeights(nn.Module):
    """As `_Standardized`, with a gain, as in timm's ScaledStdConv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(24, 32, 3), nn.Parameter(torch.ones(32, 1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        weight = F.batch_norm(
            self.conv.weight.reshape(1, 32, -1),
            None,
            None,
            weight=(self.gain * 0.1).view(-1),
            training=True,
            momentum=0.0,
        )
        return F.conv2d(x, weight.reshape_as(self.conv.weight), self.conv.bias)


def _one_sample(norm: nn.Module) -> nn.Module:
    """A norm over positions that stand first, then a convolution, whose format follows the norm's strides."""
    return nn.Sequential(
        Function(lambda x: x.transpose(0, 1)),
        norm,
        Function(lambda x: x.transpose(1, 2).unflatten(2, (14, 14))),
        nn.Conv2d(96, 8, 3, padding=1),
    )


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)

    def forward(self, x: Tensor) -> Any:
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True)).sigmoid()


def _segments() -> dict[str, Operator]:
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())

    def tail(norm: nn.Module, **options: Any) -> nn.Module:
        return Checkpointed(nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), norm), **options)

    ways: dict[str, dict[str, Any]] = {"": {"use_reentrant": False}, "_reentrant": {"use_reentrant": True}}
    made: dict[str, Callable[[], nn.Module]] = {}
    for way, options in ways.items():
        made[f"checkpoint_block{way}"] = lambda options=options: Checkpointed(block(), **options)  # type: ignore[misc]
        made[f"checkpoint_ends_in_batch_norm{way}"] = lambda options=options: tail(nn.BatchNorm2d(24), **options)  # type: ignore[misc]
        made[f"checkpoint_ends_in_group_norm{way}"] = lambda options=options: tail(nn.GroupNorm(4, 24), **options)  # type: ignore[misc]
        made[f"checkpoint_ends_in_dropout{way}"] = lambda options=options: tail(nn.Dropout(0.1), **options)  # type: ignore[misc]
        made[f"checkpoint_two{way}"] = lambda options=options: nn.Sequential(  # type: ignore[misc]
            nn.Conv2d(24, 24, 1), *(Residual(Checkpointed(block(), **options)) for _ in range(2))
        )
    made["checkpoint_sequence"] = lambda: CheckpointedSequence(*(block() for _ in range(4)))
    made["checkpoint_nested"] = lambda: Checkpointed(
        nn.Sequential(block(), Checkpointed(block(), use_reentrant=False)), use_reentrant=False
    )
    made["checkpoint_unkept_random_state"] = lambda: Checkpointed(
        block(), use_reentrant=False, preserve_rng_state=False
    )
    return {
        **{name: Operator(build, IMAGE, True, BOTH) for name, build in made.items()},
        "checkpoint_transformer": Operator(
            lambda: Checkpointed(
                nn.TransformerEncoderLayer(96, 4, 200, batch_first=True, norm_first=True), use_reentrant=False
            ),
            TOKENS,
            True,
        ),
    }


GROUPS: dict[str, dict[str, Operator]] = {
    "activations": _activations(),
    "reductions": _reductions(),
    "shapes": _shapes(),
    "sampling": _sampling(),
    "products": _products(),
    "attention": _attention(),
    "layers": _layers(),
    "segments": _segments(),
}
OPERATORS = {name: operator for group in GROUPS.values() for name, operator in group.items()}

OpCase = tuple[str, str, str]
"""Name, precision, layout."""


def cases_of(group: str) -> list[OpCase]:
    """A group's operators at each of their precisions and layouts."""
    return [
        (name, precision, layout)
        for name, operator in GROUPS[group].items()
        for precision in operator.precisions
        for layout in operator.layouts
    ]


class Training:
    """The training of one operator on the device that it is given."""

    def __init__(self, case: OpCase, device: torch.device) -> None:
        name, self._precision, layout = case
        operator = OPERATORS[name]
        head = operator.build() if operator.is_module else Function(operator.build)
        shape = operator.shape
        learned = torch.zeros(shape)
        batch = torch.zeros(shape)
        if layout == "channels_last":
            head = head.to(memory_format=torch.channels_last)
            learned, batch = (value.contiguous(memory_format=torch.channels_last) for value in (learned, batch))
        elif layout == "transposed":
            learned, batch = (value.mT.contiguous().mT for value in (learned, batch))
        self.model = nn.Sequential(Learned(torch.mul), head)
        self.model[0].weights.append(nn.Parameter(learned))
        self.model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.batch = (batch.to(device),)
        self._kept: Any = None

    def step(self) -> None:
        """One step; output and loss live until the next has ended."""
        self._kept = self._step()

    def _step(self) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = self._precision == "bf16"
        with torch.autocast("cuda", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            output = self.model(self.batch[0])
            loss = (output * output).sum()
        loss.backward()
        self.optimizer.step()
        return output, loss


STEPS = 3
STATISTICS = {
    "allocated": "allocated_bytes.all.peak",
    "reserved": "reserved_bytes.all.peak",
    "requested": "requested_bytes.all.peak",
    "allocations": "allocation.all.allocated",
    "total": "requested_bytes.all.allocated",
}
"""Peaks in bytes, the number of allocations, and their bytes."""


def run(case: OpCase) -> dict[str, Any]:
    """The real allocator's figures for one case, in a process that holds nothing on the device."""
    torch._C._cuda_clearCublasWorkspaces()
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.memory_reserved():
        raise RuntimeError(f"{torch.cuda.memory_reserved()} bytes are left of the case before {case}")
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    try:
        training = Training(case, torch.device("cuda", 0))
        for _ in range(STEPS):
            training.step()
    except (RuntimeError, NotImplementedError, IndexError) as error:
        return {"impossible": f"{type(error).__name__}: {error}".splitlines()[0]}
    statistics = torch.cuda.memory_stats()
    return {name: statistics.get(key, 0) for name, key in STATISTICS.items()}


def main() -> None:
    """Run every case of the task file; one JSON line each."""
    torch.cuda.init()
    gc.freeze()  # what is loaded need not be looked through after each case
    for case in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(run(case)), flush=True)
    os._exit(0)  # torch's threads now and then abort a process that tears itself down


if __name__ == "__main__":
    main()
