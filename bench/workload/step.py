"""THE training step, and how a case becomes one.

The worker measures this step and the trace estimator follows it: an estimate is of what runs. What stays alive between
steps decides the peak, so it is defined here:

* before a step the previous step's `output` and `loss` are alive, and its gradients;
* `zero_grad(set_to_none=True)` drops the gradients first;
* forward and loss run under autocast where the precision asks for it, backward and the optimizer outside it;
* `output` and `loss` replace the previous ones only when the step is over.

Autocast's cache of cast weights lives until its context ends, as in any training loop.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import catalog
from bench.errors import Unsupported, describe_failure, message_of
from bench.records import Case, ImageSpec, Precision, Protocol
from bench.records.variables import cublas_workspaces

AUTOCAST_TYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


_SMALLER = "the images are too small for this model; set a larger image_size"
REFUSALS: tuple[tuple[str, str], ...] = (
    # torch/nn/functional.py, `_verify_batch_size` and `_verify_spatial_size`
    (
        r"Expected more than 1 (?:value per channel|spatial element) when training, got input size [^\n]+",
        "a norm in the model needs more than one value per channel to train; use a larger batch_size or image_size",
    ),
    # torch/optim, `_get_capturable_supported_devices` and `_device_dtype_check_for_fused`
    (r"If capturable=True, [^\n]+ must be on supported devices[^\n]*", "remove capturable here"),
    (r"`fused=True` requires all the params to be [^\n]+", "remove fused here"),
    # torch/optim, of gradients that are dense where they must be sparse, or the other way round; of closures
    (r"\b\w+ does not support (?:sparse|dense) gradients[^\n]*", "use another optimizer"),
    (r"step\(\) missing 1 required positional argument: 'closure'", "the step here has none; use another optimizer"),
    # ATen's dispatch: no kernel of this type, or none for this device
    (r"\"[^\"\n]+\" not implemented for '(?:Half|BFloat16)'", "use another precision for this model here"),
    (r"Could not run '\w+::[^'\n]+' with arguments from the '\w+' backend", "torch has no such kernel for this device"),
    # ATen/native/Convolution.cpp and Pool.h: nothing is left of the images inside the model
    (r"Calculated padded input size[^\n]*Kernel size can't be greater than actual input size", _SMALLER),
    (r"Given input size:[^\n]*Output size is too small", _SMALLER),
    # torch/_inductor and torch/_dynamo
    (r"Found [^\n]+ which is too old to be supported by the triton GPU compiler", "turn measure.compiled off here"),
    (r"(?:torch\.compile|Dynamo) is not supported on Python [\d.]+\+?", "turn measure.compiled off here"),
    # torch/_inductor/exc.py, and build.py of triton: torch.compile has no compiler to call
    (r"No working C\+\+ compiler found", "install one (g++), or turn measure.compiled off here"),
    (r"Failed to find C compiler", "install one (gcc), or turn measure.compiled off here"),
    (r"Cannot find a working triton installation", "install triton, or turn measure.compiled off here"),
)
"""What torch says where it cannot run a case, whatever the memory and the values, and what to do about it.

Only words that name a limit of torch or of the case are here. A model with a fault of its own fails: shapes that do not
match, a wrong type, a value out of range say that somebody is to fix it.
"""

_REFUSED_IMAGES = (
    r"Given groups=\d+, weight of size \[[\d, ]+\], expected input\[{}, {}, {}, {}\] to have \d+ channels, "
    r"but got \d+ channels"
)
"""ATen/native/Convolution.cpp, of the first convolution of a model."""


def refusal_of(error: BaseException, images: tuple[int, ...] = ()) -> str | None:
    """Why the case cannot run, where `error` says so; None if it is a failure.

    Args:
        error: What building the case or its step raised.
        images: The shape of the batch, `(B, C, H, W)`: a layer that refuses this very shape refuses the images.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and all(current is not each for each in seen):  # torch.compile wraps what a model raises
        seen.append(current)
        text = message_of(current)
        for pattern, remedy in REFUSALS:
            if found := re.search(pattern, text):
                return f"{found[0].rstrip('. ')}; {remedy}"
        if images and (found := re.search(_REFUSED_IMAGES.format(*images), text)):
            return f"{found[0]}; the model does not accept images of this shape"
        current = current.__cause__ or current.__context__
    return None


def _refused_arguments(error: BaseException) -> str | None:
    """What a constructor says that refuses its arguments by raising a ValueError on purpose; None for a slip."""
    frames = traceback.extract_tb(error.__traceback__)
    deliberate = isinstance(error, ValueError) and frames and (frames[-1].line or "").startswith("raise ")
    return describe_failure(error) if deliberate else None


@dataclass(slots=True)
class Workload:
    """A case, built: its model and optimizer on the device, ready to step.

    Attributes:
        model: On the device, in training mode.
        optimizer: Over all parameters of the model.
        device: Where everything lives.
        autocast_type: The type of autocast, or `None` for plain float32.
        scaler: The gradient scaler of fp16, or `None`.
        criterion: `(output, labels) -> loss`.
        kept: What the last step left alive: `(output, loss)`; the output is `(B, classes)` unless the model's entry has
            a loss of its own, the loss `()`.
        refuse_error: `error of a step -> why the model cannot run the case`, or `None` where it is a failure.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast_type: torch.dtype | None = None
    scaler: Any = None
    criterion: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    kept: tuple[Any, Tensor] | None = field(default=None, repr=False)
    refuse_error: Callable[[BaseException], str | None] = lambda error: None

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step on images `(B, C, H, W)` float32 and labels `(B,)` int64, both on the device.

        Raises:
            Unsupported: Torch cannot run this step, whatever the memory and the values.
        """
        try:
            self.kept = self._step(images, labels)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if (reason := refusal_of(error, tuple(images.shape)) or self.refuse_error(error)) is not None:
                raise Unsupported(reason) from error
            raise

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Any, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            output = self.model(images)
            loss = self.criterion(output, labels)
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return output, loss

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What forward and loss run under: the case's precision."""
        if self.autocast_type is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_type)

    @property
    def loss(self) -> float | None:
        """The last step's loss; waits for the device."""
        return None if self.kept is None else float(self.kept[1].detach())

    @property
    def parameter_count(self) -> int:
        """How many numbers the model trains."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def build_model(case: Case, images: ImageSpec) -> nn.Module:
    """The case's model on the CPU, in training mode, initialised from torch's seed.

    Raises:
        Unsupported: The model cannot take these images.
        UnknownNameError: No such model.
    """
    entry = catalog.model(case.model.name)
    if reason := entry.skip_reason(images, case.model.options):
        raise Unsupported(reason)
    try:
        return entry.build(images, **case.model.options).train()
    except ValueError as error:
        if (reason := _refused_arguments(error)) is not None:
            raise Unsupported(f"{case.model} cannot be built: {reason}") from error
        raise


def criterion_of(model: str) -> Callable[[Any, Tensor], Tensor]:
    """`(output, labels) -> loss` of a model of the catalog. Raises UnknownNameError."""
    return catalog.model(model).loss or functional.cross_entropy


def build_workload(case: Case, images: ImageSpec, protocol: Protocol, device: torch.device) -> Workload:
    """Everything of the case but its batches, on the device.

    The order of moves is part of the contract, since it decides addresses: the model first (then its memory format),
    the optimizer over the moved parameters, and after this function the first batch.

    Raises:
        Unsupported: The model or the optimizer cannot train this case.
        UnknownNameError: No such model or optimizer.
    """
    torch.manual_seed(protocol.seed)
    model = build_model(case, images).to(device)
    if case.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
    entry = catalog.optimizer(case.optimizer.name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if entry.refuse_reason is not None and (reason := entry.refuse_reason(shapes, case.optimizer.options)):
        raise Unsupported(reason)
    try:
        optimizer = entry.build(parameters, **case.optimizer.options)
    except (RuntimeError, ValueError, TypeError) as error:
        if (reason := refusal_of(error) or _refused_arguments(error)) is not None:
            raise Unsupported(f"{case.optimizer} cannot be built: {reason}") from error
        raise
    scaler = torch.amp.GradScaler(device.type) if case.precision == "fp16" else None
    stepped = cast(nn.Module, torch.compile(model)) if protocol.compiled else model
    criterion = criterion_of(case.model.name)
    refuse_error = functools.partial(catalog.model(case.model.name).refuse_error, images, case.model.options)
    autocast_type = AUTOCAST_TYPES.get(case.precision)
    return Workload(stepped, optimizer, device, autocast_type, scaler, criterion, refuse_error=refuse_error)


@contextlib.contextmanager
def numeric_modes(case: Case, protocol: Protocol) -> Iterator[None]:
    """Set every switch that decides which kernels run, explicitly, for the duration of the context.

    TF32 is on for `tf32` only, in matrix products and convolutions alike; torch's default has it on in convolutions.
    `deterministic` is `torch.use_deterministic_algorithms` as a script calls it: operators without a deterministic form
    raise, new tensors are filled, and cuBLAS has the workspaces with which it is deterministic. Those are read when its
    first handle is made, so enter this before anything runs on the GPU.

    Raises:
        Unsupported: Within the context an operator has no deterministic form; the message names it.
    """
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    algorithms = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filling = cast(Any, torch.utils.deterministic)  # a module with a property, which types do not know
    filled, workspaces = filling.fill_uninitialized_memory, os.environ.get(_WORKSPACES)
    _set_modes(case.precision == "tf32", case.precision == "tf32", protocol.cudnn_benchmark, protocol.deterministic)
    torch.use_deterministic_algorithms(protocol.deterministic)
    filling.fill_uninitialized_memory = True  # torch's default, and without effect otherwise
    _set_workspaces(cublas_workspaces(os.environ, deterministic=protocol.deterministic))
    try:
        yield
    except RuntimeError as error:
        if protocol.deterministic and (found := _NOT_DETERMINISTIC.search(str(error))):
            said = f"deterministic is on, but torch has no deterministic form of {found[1]}"
            raise Unsupported(f"{said}; turn measure.deterministic off here") from error
        raise
    finally:
        _set_modes(*before)
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        filling.fill_uninitialized_memory = filled
        _set_workspaces(workspaces)


_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
"""aten/src/ATen/Context.cpp, `alertNotDeterministic`."""


def _set_workspaces(value: str | None) -> None:
    if value is None:
        os.environ.pop(_WORKSPACES, None)
    else:
        os.environ[_WORKSPACES] = value


def _set_modes(matmul_tf32: bool, cudnn_tf32: bool, benchmark: bool, deterministic: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
