"""What each replaced kernel returns: new tensors of the right shape, or the arguments it was given to write to.

Shapes come from torch's own `Meta` kernels, asked once for each combination of arguments. Where these do not speak of
CUDA (convolutions choose a memory format) or are missing, a rule of this file stands for them. Results of pointwise
operators have the strides that TensorIterator gives them (aten/src/ATen/TensorIterator.cpp): torch's `Meta` kernels
written in Python lay some of them out differently where dimensions have size 1.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.catalog.settling import LBFGS_CURVATURE
from bench.errors import OPERATOR_NOTE, BenchError, ReadsValues, Unsupported, place_of
from bench.estimators.fake_cuda.memory import DTYPES, Memory, Recorder, number_of, spec_of
from bench.estimators.recording import Output
from bench.estimators.tensors import (
    CHANNELS_LAST_ORDER,
    Spec,
    channels_last,
    contiguous,
    dense_like,
    lay_out,
    suggests_channels_last,
)


def convolution_is_channels_last(first: Spec, weight: Spec) -> bool:
    """Whether cuDNN works in channels-last (aten/src/ATen/native/ConvUtils.h: cudnn_conv_suggest_memory_format)."""
    if first.dtype == "float64" or weight.dtype == "float64":
        return False
    return suggests_channels_last(first) or suggests_channels_last(weight)


def _like_convolution(dtype: str, shape: Sequence[int], last: bool) -> Spec:
    return channels_last(dtype, shape) if last and len(shape) in CHANNELS_LAST_ORDER else contiguous(dtype, shape)


def convolution(
    image: Spec,
    weight: Spec,
    bias: Spec | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Spec:
    """The result of a convolution over any number of spatial dimensions."""
    spatial = len(weight.shape) - 2

    def at(values: Sequence[int], index: int) -> int:
        return values[index] if len(values) > 1 else values[0]

    sizes = []
    for i in range(spatial):
        size, kernel, step = image.shape[i + 2], weight.shape[i + 2], at(stride, i)
        reach = at(dilation, i) * (kernel - 1)
        if transposed:
            sizes.append((size - 1) * step - 2 * at(padding, i) + reach + at(output_padding, i) + 1)
        else:
            sizes.append((size + 2 * at(padding, i) - reach - 1) // step + 1)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    shape = (image.shape[0], channels, *sizes)
    return _like_convolution(image.dtype, shape, convolution_is_channels_last(image, weight))


def convolution_backward(
    gradient: Spec,
    image: Spec,
    weight: Spec,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Spec | None, ...]:
    """Gradients of image, weight and bias; the image's and weight's are in the convolution's format."""
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    either = suggests_channels_last(image) or suggests_channels_last(weight)
    return (
        _like_convolution(image.dtype, image.shape, either) if output_mask[0] else None,
        _like_convolution(weight.dtype, weight.shape, either) if output_mask[1] else None,
        contiguous(gradient.dtype, (channels,)) if output_mask[2] else None,
    )


def layer_norm(image: Spec, normalized: Sequence[int], *_: Any) -> tuple[Spec, ...]:
    """Contiguous result, means and reciprocal deviations (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""
    kept = len(image.shape) - len(normalized)
    sums = contiguous(_SUMMED_IN.get(image.dtype, image.dtype), (*image.shape[:kept], *(1 for _ in normalized)))
    return contiguous(image.dtype, image.shape), sums, sums


def rms_norm(image: Spec, normalized: Sequence[int], *_: Any) -> tuple[Spec, ...]:
    """As `layer_norm`, without means."""
    return layer_norm(image, normalized)[:2]


_SUMMED_IN = {"float16": "float32", "bfloat16": "float32"}
"""Types of which a kernel sums in another (aten/src/ATen/AccumulateType.h)."""


def layer_norm_backward(gradient: Spec, image: Spec, *rest: Any) -> tuple[Spec | None, ...]:
    """Contiguous gradients of image, weight and bias (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""
    weight, bias, mask = rest[3:6]
    return (
        contiguous(image.dtype, image.shape) if mask[0] else None,
        contiguous(weight.dtype, weight.shape) if mask[1] and weight else None,
        contiguous(bias.dtype, bias.shape) if mask[2] and bias else None,
    )


def rms_norm_backward(gradient: Spec, image: Spec, *rest: Any) -> tuple[Spec | None, ...]:
    """As `layer_norm_backward`, of image and weight."""
    _, _, weight, mask = rest
    return layer_norm_backward(gradient, image, *rest[:2], None, weight, None, (*mask, False))[:2]


def batch_norm_backward(gradient: Spec, image: Spec, weight: Spec | None, *rest: Any) -> tuple[Spec | None, ...]:
    """Gradients of image, in its layout, weight and bias (aten/src/ATen/native/cuda/Normalization.cu)."""
    trains, mask, scale = rest[4], rest[6], weight.dtype if weight else "float32"
    channels = contiguous(scale, (image.shape[1],))
    for_image = dense_like(image) if trains else contiguous(image.dtype, image.shape)
    return for_image if mask[0] else None, channels if mask[1] else None, channels if mask[2] else None


def log_sigmoid(source: Spec) -> tuple[Spec, Spec]:
    """Result and a buffer that is empty on a GPU (aten/src/ATen/native/Activation.cpp: log_sigmoid_forward_cuda)."""
    return dense_like(source), Spec(source.dtype, (0,), (1,))


def _positions_first(dtype: str, shape: Sequence[int]) -> Spec:
    """`(B, heads, positions, width)` that lies in memory as `(B, positions, heads, width)`."""
    _, heads, length, width = shape
    return Spec(dtype, tuple(shape), (length * heads * width, width, heads * width, 1))


_SEED = Spec("int64", (), ())


def efficient_attention(query: Spec, key: Spec, value: Spec, mask: Any, wants_sums: bool, *_: Any) -> tuple[Any, ...]:
    """Result, logarithms of the sums (positions rounded up to 32), seed, offset (transformers/cuda/attention.cu)."""
    batch, heads, length = query.shape[:3]
    sums = contiguous("float32", (batch, heads, -(-length // 32) * 32 if wants_sums else 0))
    return _positions_first(query.dtype, (*query.shape[:3], value.shape[3])), sums, _SEED, _SEED


def efficient_attention_backward(
    gradient: Spec, query: Spec, key: Spec, value: Spec, mask: Spec | None, *rest: Any
) -> tuple[Any, ...]:
    """Gradients of query, key and value, positions before heads; that of the mask, in rows of a multiple of 16."""
    length, for_mask = key.shape[2], None
    if mask is not None and rest[5][3]:
        rows = contiguous(mask.dtype, (*query.shape[:3], -(-length // 16) * 16))
        for_mask = Spec(mask.dtype, (*query.shape[:3], length), rows.strides)
    return (*(_positions_first(spec.dtype, spec.shape) for spec in (query, key, value)), for_mask)


def cudnn_attention(query: Spec, key: Spec, value: Spec, mask: Any, wants_sums: bool, *_: Any) -> tuple[Any, ...]:
    """Result in the layout of the query, logarithms of the sums, seed, offset (native/cudnn/MHA.cpp)."""
    result = dense_like(Spec(query.dtype, (*query.shape[:3], value.shape[3]), query.strides))
    sums = contiguous("float32", (*query.shape[:3], 1))
    return result, sums, None, None, query.shape[2], key.shape[2], _SEED, _SEED, None


def attention_backward(gradient: Spec, query: Spec, key: Spec, value: Spec, *_: Any) -> tuple[Spec, ...]:
    """Gradients in the layouts of query, key and value."""
    return tuple(dense_like(spec) for spec in (query, key, value))


def flash_attention(query: Spec, key: Spec, value: Spec, *_: Any) -> tuple[Any, ...]:
    """Result in the layout of the query, logarithms of the sums, state of the random numbers.

    Source: transformers/cuda/flash_attn/flash_api.cpp. Torch 2.6 keeps the random numbers' state on the CPU.
    """
    sums = contiguous("float32", query.shape[:3])
    state = (contiguous("uint64", (2,)), contiguous("uint64", ()))
    return dense_like(query), sums, None, None, query.shape[2], key.shape[2], *state, None


RULES: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "convolution_overrideable": convolution,
    "convolution_backward": convolution_backward,
    "native_batch_norm_backward": batch_norm_backward,
    "_fused_rms_norm": rms_norm,
    "_fused_rms_norm_backward": rms_norm_backward,
    "native_layer_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
    "glu_backward": lambda gradient, source, *_: contiguous(source.dtype, source.shape),
    "log_sigmoid_forward": log_sigmoid,
    "roll": lambda source, *_: contiguous(source.dtype, source.shape),
    "_scaled_dot_product_efficient_attention": efficient_attention,
    "_scaled_dot_product_efficient_attention_backward": efficient_attention_backward,
    "_scaled_dot_product_cudnn_attention": cudnn_attention,
    "_scaled_dot_product_cudnn_attention_backward": attention_backward,
    "_scaled_dot_product_flash_attention": flash_attention,
    "_scaled_dot_product_flash_attention_backward": attention_backward,
}
"""By the operator's name without overload; arguments as in its schema with tensors as `Spec`s."""


POINTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "rsub",
        "gelu",
        "gelu_backward",
        "silu",
        "silu_backward",
        "relu",
        "threshold_backward",
        "hardswish",
        "hardswish_backward",
        "hardsigmoid",
        "hardsigmoid_backward",
        "sigmoid",
        "sigmoid_backward",
        "tanh",
        "tanh_backward",
        "pow",
        "neg",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "abs",
        "clamp",
        "clamp_min",
        "clamp_max",
        "where",
        "maximum",
        "minimum",
        "hardtanh",
        "hardtanh_backward",
        "leaky_relu",
        "leaky_relu_backward",
        "elu",
        "elu_backward",
        "mish",
        "mish_backward",
        "softplus",
        "softplus_backward",
        "addcmul",
        "addcdiv",
        "lerp",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    ]
)

SECOND_FIRST = frozenset(("threshold_backward", "leaky_relu_backward"))
"""Operators that give TensorIterator their second tensor first (aten/src/ATen/native/Activation.cpp)."""


Kernel = Callable[..., Any]

DATA_DEPENDENT = frozenset(
    [
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "equal",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "_ctc_loss",
    ]
)
"""Operators whose result or its shape depends on values, which a trace does not have."""


def reads_values(name: str, arguments: Sequence[Any]) -> bool:
    """Whether an operator needs values to run, or for the shape of its result.

    Args:
        name: With its overload.
        arguments: In the order of its schema, as far as they are given.
    """
    base = name.removeprefix("aten::").partition(".")[0]
    if base == "index":  # a mask picks as many as it holds
        return any(isinstance(index, torch.Tensor) and index.dtype in _MASKS for index in arguments[1])
    if base == "repeat_interleave":
        return name.endswith(".Tensor") and all(size is None for size in arguments[1:])
    return base in DATA_DEPENDENT


_MASKS = (torch.bool, torch.uint8)


LIBRARIES = {
    "_cudnn_rnn": "cuDNN",
    "_cudnn_init_dropout_state": "cuDNN",
    "_fft_": "cuFFT",
    "linalg_": "cuSOLVER",
    "_linalg_": "cuSOLVER",
    "cholesky": "cuSOLVER",
    "geqrf": "cuSOLVER",
    "ormqr": "cuSOLVER",
    "lu_": "cuSOLVER",
    "triangular_solve": "cuSOLVER",
}
"""Beginnings of operators' names, with the library that says during a run how much memory it works in."""

_MODELLED = ("linalg_vector_norm", "linalg_cross", "_linalg_check_errors")

LONGEST_SORTED = 4096
"""The longest dimension that is sorted without the scratch of a library (aten/src/ATen/native/cuda/Sort.cpp)."""


def refuse_unknown(plan: Plan, values: Sequence[Any]) -> None:
    """Refuse an operator that works in memory of unknown size.

    Raises:
        Unsupported: With the operator and the line that calls it.
    """
    reason = None
    if plan.base.startswith(tuple(LIBRARIES)) and not plan.base.startswith(_MODELLED):
        library = next(name for start, name in LIBRARIES.items() if plan.base.startswith(start))
        reason = f"{library} decides during the run"
    elif plan.base in ("sort", "argsort", "_ctc_loss") and values[0].dim():
        dim = next((value for value in values[1:] if type(value) is int), -1)
        reason = "sorting long rows takes scratch" if values[0].shape[dim] > LONGEST_SORTED else None
    if reason:
        place = place_of(traceback.walk_stack(None))
        where = f" in {place}" if place else ""
        raise Unsupported(f"the memory that {plan.name}{where} works in is unknown: {reason}")


COPY_TO_HOST = "a copy to the CPU"
"""How an operator is named that brings values to the host, whichever it is."""

_UNKNOWN = object()


def _tensors_in(value: Any) -> Sequence[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else value or ()


_STORAGE_OPERATORS = frozenset(("resize_", "set_"))


class Plan:
    """How an operator's results relate to its arguments, read from its schema."""

    def __init__(self, name: str) -> None:
        """Read the schema of `name`, such as `aten::add.Tensor`."""
        namespace, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        self.name, self.base = name, base
        self.overload = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
        schema = self.overload._schema
        self.arguments = [(argument.name, argument.default_value) for argument in schema.arguments]
        takes_numbers = torch._C._should_allow_numbers_as_tensors(base)
        self.tensors = [
            index
            for index, argument in enumerate(schema.arguments)
            if not takes_numbers and str(argument.type) in ("Tensor", "Optional[Tensor]")
        ]
        self.positional = sum(not argument.kwarg_only for argument in schema.arguments)
        self.returned = [self._written(schema, value) for value in schema.returns]
        self.written = tuple(
            index
            for index, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        self.is_new = all(index is None for index in self.returned) and bool(schema.returns)
        self.lists = [str(value.type).startswith("List") for value in schema.returns]

    @staticmethod
    def _written(schema: Any, value: Any) -> int | None:
        """Position of the argument that a result is, None if it is new."""
        if value.alias_info is None or not value.alias_info.is_write:
            return None
        wanted = value.alias_info.before_set
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.before_set == wanted:
                return index
        return None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """All arguments in the order of the schema, defaults filled in."""
        values = list(args)
        for name, default in self.arguments[len(args) :]:
            values.append(kwargs.get(name, default))
        return values


def describe(value: Any) -> Any:
    """A hashable description: tensors become `Spec`s, lists tuples."""
    if isinstance(value, torch.Tensor):
        return spec_of(value)
    if isinstance(value, list | tuple):
        return tuple([describe(item) for item in value])
    return value


def _plain(signature: tuple[Any, ...]) -> tuple[Any, ...]:
    """The description without torch's own types: a `torch.dtype` becomes its name, others their text."""
    return tuple([value if type(value) in _PLAIN_TYPES else _NAMES.get(value) or str(value) for value in signature])


_PLAIN_TYPES = {Spec, tuple, int, float, bool, str, type(None)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _to_meta(value: Any) -> Any:
    if isinstance(value, Spec):
        return torch.empty_strided(value.shape, value.strides, dtype=DTYPES[value.dtype], device="meta")
    if isinstance(value, tuple):
        return [_to_meta(item) for item in value]
    return torch.device("meta") if isinstance(value, torch.device) else value


def _from_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return spec_of(value)
    return tuple(map(_from_meta, value)) if isinstance(value, list | tuple) else value


class TracedKernels:
    """The kernels of one trace."""

    def __init__(self, memory: Memory, recorder: Recorder) -> None:
        """Kernels that allocate from `memory` and tell `recorder`."""
        self.memory, self.recorder = memory, recorder
        self._inferred: dict[tuple[str, tuple[Any, ...]], Any] = {}

    def build(self, name: str) -> Kernel:
        """The kernel that stands for `name`."""
        plan: Plan | None = None

        def kernel(*args: Any, **kwargs: Any) -> Any:
            nonlocal plan
            if plan is None:
                plan = Plan(name)
            try:
                return self._run(plan, plan.bind(args, kwargs))
            except BenchError:
                raise
            except BaseException as error:
                error.add_note(f"{OPERATOR_NOTE}{name}")
                raise

        return kernel

    def _run(self, plan: Plan, values: list[Any]) -> Any:
        if plan.base == "_local_scalar_dense":
            self.recorder.reads(plan.name)
            known = self.memory.numbers.get(number_of(values[0]))
            return known.item() if known is not None else 0.0 if values[0].dtype.is_floating_point else 0
        if reads_values(plan.name, values):
            raise ReadsValues(plan.name)
        if plan.base == "copy_" and values[0].is_cpu and not values[1].is_cpu:
            self.recorder.reads(COPY_TO_HOST)
            with torch.no_grad():
                values[0].zero_()
        refuse_unknown(plan, values)
        signature = tuple([describe(value) for value in values])
        if not plan.is_new:
            return self._write(plan, values, signature)
        key = (plan.name, signature)
        if key not in self._inferred:
            self._inferred[key] = self._infer(plan, signature)
        made: list[Output] = []
        result = self._make(self._inferred[key], made)
        if plan.name == "aten::gt.Scalar" and not values[0].dim() and values[1] == LBFGS_CURVATURE:
            self.memory.numbers[self.memory.count] = torch.tensor(True)
        self.memory.tell_deaths()
        self.recorder.called(plan.name, _plain(signature), tuple(made), plan.written)
        return result

    def _write(self, plan: Plan, values: list[Any], signature: tuple[Any, ...]) -> Any:
        made: list[Output] = []
        if plan.base in _STORAGE_OPERATORS or plan.name.endswith("out"):
            self._resize(plan, values, signature, made)
        self._follow_numbers(plan, values)
        self.memory.tell_deaths()
        self.recorder.called(plan.name, _plain(signature), tuple(made), plan.written)
        results = [values[index] for index in plan.returned if index is not None]
        return results[0] if len(results) == 1 else tuple(results) if results else None

    def _follow_numbers(self, plan: Plan, values: list[Any]) -> None:
        """Compute what an operator writes to a tensor of one number, where it depends on such numbers alone.

        Optimizers count steps and read weights of averages so. Any other tensor written to is unknown from then on.
        """
        numbers = self.memory.numbers
        written = [tensor for index in plan.written for tensor in _tensors_in(values[index])]
        places = [place for tensor in written if (place := number_of(tensor)) in numbers]
        if len(written) == 1 and places and not written[0].dim():
            if numbers[places[0]] is None and plan.base in ("fill_", "zero_", "copy_"):
                numbers[places[0]] = torch.zeros((), dtype=written[0].dtype)
            known = [self._number(value) for value in values]
            if all(number is not _UNKNOWN for number in known):
                names = [name for name, _ in plan.arguments]
                keywords = dict(zip(names[plan.positional :], known[plan.positional :], strict=True))
                with torch.no_grad():
                    plan.overload(*known[: plan.positional], **keywords)
                return
        for place in places:
            numbers[place] = None

    def _number(self, value: Any) -> Any:
        """What stands for an argument in a computation with numbers."""
        if isinstance(value, torch.Tensor):
            known = value if value.is_cpu else self.memory.numbers.get(number_of(value))
            return _UNKNOWN if known is None or known.numel() != 1 or value.dim() else known
        return _UNKNOWN if isinstance(value, list | tuple) else value

    def _resize(self, plan: Plan, values: list[Any], signature: tuple[Any, ...], made: list[Output]) -> None:
        """Give the results that an `out` or `resize_` operator writes to the shape that they will have."""
        key = (plan.name, signature)
        if key not in self._inferred:
            self._inferred[key] = self._infer(plan, signature)
        inferred = self._inferred[key]
        specs = [inferred] if isinstance(inferred, Spec) else inferred
        written = [index for index in plan.returned if index is not None]
        for index, spec in zip(written, specs, strict=True):
            target = values[index]
            if isinstance(target, torch.Tensor) and spec_of(target)[1:] != spec[1:]:
                with torch.no_grad():
                    target.data = self._make(spec, made)

    def _infer(self, plan: Plan, signature: tuple[Any, ...]) -> Any:
        """`Spec`s of the results (None for those that are left undefined), nested as the results are."""
        rule = RULES.get(plan.base)
        if rule is not None:
            return rule(*signature)
        if plan.base.startswith("_foreach_"):
            return _infer_foreach(plan, signature)
        metas = [_to_meta(value) for value in signature]
        for index in plan.tensors:
            if type(metas[index]) in (int, float, bool):  # a number that stands for a tensor
                metas[index] = torch.tensor(metas[index])
        names = [name for name, _ in plan.arguments]
        try:
            result = plan.overload(
                *metas[: plan.positional], **dict(zip(names[plan.positional :], metas[plan.positional :], strict=True))
            )
        except NotImplementedError as error:
            place = place_of(traceback.walk_stack(None))
            where = f", which {place} calls" if place else ""
            raise Unsupported(f"the memory trace has no shape rule for {plan.name}{where}") from error
        inferred = _from_meta(result)
        if plan.base in POINTWISE and isinstance(inferred, Spec):
            operands = [value for value in signature if isinstance(value, Spec)]
            return lay_out(inferred, operands[::-1] if plan.base in SECOND_FIRST else operands)
        return inferred

    def _make(self, inferred: Any, made: list[Output]) -> Any:
        if isinstance(inferred, Spec):
            tensor = self.memory.allocate(inferred)
            size = inferred.nbytes
            if size:
                made.append(Output(self.memory.count, size, inferred))
            return tensor
        if isinstance(inferred, tuple):
            return tuple([self._make(item, made) for item in inferred])
        return inferred


def _infer_foreach(plan: Plan, signature: tuple[Any, ...]) -> Any:
    """One result for each tensor of the first list, with its strides; two lists are broadcast pair by pair.

    The list is not the first argument everywhere: a number may be raised to the power of each of its tensors.
    """
    lists = [value for value in signature if isinstance(value, tuple) and value and isinstance(value[0], Spec)]
    first = lists[0]
    if plan.base == "_foreach_norm":
        return tuple(Spec(spec.dtype, (), ()) for spec in first)
    if plan.base == "_foreach_max":
        return tuple(Spec(spec.dtype, (), ()) for spec in first)
    if len(lists) == 2:
        return tuple(_paired(one, other) for one, other in zip(*lists, strict=True))
    return tuple(_dense(spec) for spec in first)


def _paired(one: Spec, other: Spec) -> Spec:
    """The result of an operator on two tensors; foreach falls back on that of single ones where their shapes differ."""
    if one.shape == other.shape:
        return _dense(one)
    shape = tuple(torch.broadcast_shapes(one.shape, other.shape))  # type: ignore[no-untyped-call]
    promoted = (one if len(one.shape) == len(shape) else other).dtype
    return lay_out(contiguous(promoted, shape), (one, other))


def _dense(spec: Spec) -> Spec:
    meta = torch.empty_strided(spec.shape, spec.strides, dtype=DTYPES[spec.dtype], device="meta")
    return spec_of(torch.empty_like(meta))


_TAKEN_OVER = (
    "aten::_linalg_check_errors",  # reads whether a decomposition failed: here none does
    "aten::copy_",
    "aten::convolution",
    "aten::convolution_backward",
    "aten::cudnn_batch_norm",
    "aten::cudnn_batch_norm_backward",
    "aten::_cudnn_rnn",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_backward",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_efficient_attention_backward",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_cudnn_attention_backward",
)
"""Operators that get a kernel for CUDA although torch may register none (builds without CUDA, composite operators)."""


def list_operators() -> tuple[list[str], list[str]]:
    """Names of the operators to replace, and of those that make views."""
    registrations = torch._C._dispatch_get_registrations_for_dispatch_key
    names = {*registrations("CUDA"), *registrations("CPU"), *_TAKEN_OVER}
    names.update(
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith(("aten::_foreach_", "aten::_fused_"))
    )
    computing: list[str] = []
    viewing: list[str] = []
    for name in sorted(name for name in names if name.startswith("aten::")):
        base, _, overload = name.removeprefix("aten::").partition(".")
        schema = torch._C._get_schema(f"aten::{base}", overload)
        aliases = [value.alias_info for value in schema.returns]
        (viewing if any(alias is not None and not alias.is_write for alias in aliases) else computing).append(name)
    return computing, viewing


def redispatch_to_meta(name: str) -> Kernel:
    """A view is made by the same code for every device; builds without CUDA have it registered for others only."""
    base, _, overload = name.removeprefix("aten::").partition(".")
    operator = getattr(getattr(torch.ops.aten, base), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
    return lambda *args, **kwargs: operator.redispatch(keys, *args, **kwargs)
