"""THE training step, and how a case becomes one.

The worker measures this step and the trace estimator follows it: an estimate is of what runs. What stays alive between
steps decides the peak, so it is defined here:

* before a step the previous step's `output` and `loss` are alive, and its gradients;
* `zero_grad` drops the gradients first (`set_to_none=True`), or fills them with zeros where the case says so;
* forward and loss run under autocast where the precision asks for it, backward and the optimizer outside it;
* `output` and `loss` replace the previous ones only when the step is over, or the micro-batch where it has several;
* a step of several micro-batches divides each loss by their number and adds the gradients up; a micro-batch is
  asked for when the one before has gone back;
* where parameters are updated in the backward, each has an optimizer of its own, which steps and drops the gradient as
  soon as that is accumulated;
* a model may bring a step of its own: it runs in place of all this, and what it returns is alive until its next ends;
* an optimizer whose step takes a closure (L-BFGS) evaluates the same batches in each call of it: zero_grad, forward,
  loss, backward. The loss is what the closure returns, and the output dies with it.

Autocast's cache of cast weights lives until its context ends, as in any training loop.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
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
from bench.catalog.entries import Step
from bench.catalog.settling import parts_of
from bench.errors import Unsupported, describe_failure, message_of
from bench.plan import refuse_closure
from bench.records import Case, ImageSpec, Precision, Protocol
from bench.records.variables import cublas_workspaces
from bench.workload.checkpointing import checkpoint_blocks
from bench.workload.rounding import rounded_for
from bench.workload.targets import LOSSES

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
    # torch/optim, of gradients that are dense where they must be sparse, or the other way round
    (r"\b\w+ does not support (?:sparse|dense) gradients[^\n]*", "use another optimizer"),
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


class UpdateInBackward:
    """An optimizer for each parameter, stepped by the backward as soon as the parameter's gradient is accumulated.

    What calls an optimizer can call this: `step` and `zero_grad` have nothing left to do.
    Source: torch's tutorial on fusing the optimizer step into the backward pass.
    """

    def __init__(
        self, build: Callable[[list[nn.Parameter]], torch.optim.Optimizer], parameters: list[nn.Parameter]
    ) -> None:
        """Take what makes an optimizer over some parameters, and all parameters."""
        self._optimizers = {parameter: build([parameter]) for parameter in parameters}
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._update)  # type: ignore[no-untyped-call]

    def _update(self, parameter: Tensor) -> None:
        optimizer = self._optimizers[cast(nn.Parameter, parameter)]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One for each parameter."""
        return list(self._optimizers.values())

    @property
    def state(self) -> dict[Any, Any]:
        """The state of all optimizers, by parameter."""
        return {key: value for optimizer in self._optimizers.values() for key, value in optimizer.state.items()}

    def step(self) -> None:
        """Nothing: the backward has done it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the backward has done it."""


def takes_closure(optimizer: torch.optim.Optimizer | UpdateInBackward) -> bool:
    """Whether the optimizer cannot step without a closure that evaluates the model, as LBFGS."""
    return _needs_closure(type(optimizer).step)


@functools.cache  # a step asks, and is timed
def _needs_closure(step: Any) -> bool:
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


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
            a loss of its own (None after a step by closure), the loss `()` (None of an own step that returns none).
        accumulation: Batches of one step.
        set_to_none: Whether gradients are dropped before a step rather than filled with zeros.
        refuse_error: `error of a step -> why the model cannot run the case`, or `None` where it is a failure.
        own_step: The model's own step, see `ModelEntry`; what it returned stands in `kept` in place of the output.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | UpdateInBackward
    device: torch.device
    autocast_type: torch.dtype | None = None
    scaler: Any = None
    criterion: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    kept: tuple[Any, Tensor | None] | None = field(default=None, repr=False)
    accumulation: int = 1
    set_to_none: bool = True
    refuse_error: Callable[[BaseException], str | None] = lambda error: None
    own_step: Step | None = None

    def step(self, batches: Iterator[tuple[Tensor, ...]]) -> None:
        """One optimizer step on the next batches, as many as it accumulates.

        Args:
            batches: Images `(B, C, H, W)` float32 and labels `(B,)` or `(B, H, W)` int64, all on the device; B is the
                micro-batch's.

        Raises:
            Unsupported: Torch cannot run this step, whatever the memory and the values.
        """
        shape: tuple[int, ...] = ()
        try:
            if self.own_step is not None:
                returned = self.own_step(self.model, self.optimizer, next(batches))
                is_loss = isinstance(returned, Tensor) and returned.dim() == 0
                self.kept = returned, (returned if is_loss else None)
                return
            if takes_closure(self.optimizer):
                drawn = [cast(tuple[Tensor, Tensor], next(batches)) for _ in range(self.accumulation)]
                shape = tuple(drawn[0][0].shape)
                cast(Any, self.optimizer).step(functools.partial(self._evaluate, drawn))
                return
            for number in range(self.accumulation):
                images, labels = next(batches)
                shape = tuple(images.shape)
                if number == 0:
                    self.optimizer.zero_grad(set_to_none=self.set_to_none)
                self.kept = self._learn(images, labels)
            self._update()
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if (reason := refusal_of(error, shape) or self.refuse_error(error)) is not None:
                raise Unsupported(reason) from error
            raise

    def _evaluate(self, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The loss of a step's batches, and their gradients."""
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        losses = []
        for images, labels in batches:
            loss = self._learn(images, labels)[1]
            self.kept = None, loss
            losses.append(loss)
            del loss
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _learn(self, images: Tensor, labels: Tensor) -> tuple[Any, Tensor]:
        """Forward and backward of one batch."""
        with self.autocast():
            output = self.model(images)
            loss = self.criterion(output, labels)
            if self.accumulation > 1:
                loss = loss / self.accumulation
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return output, loss

    def _update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What forward and loss run under: the case's precision."""
        if self.autocast_type is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_type)

    @property
    def loss(self) -> float | None:
        """The last batch's loss; None before a step, and of an own step without one. Waits for the device."""
        loss = self.kept and self.kept[1]
        return None if loss is None else self.accumulation * float(loss.detach())

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
    if reason := entry.refusal(images, case.model.options):
        raise Unsupported(reason)
    try:
        return entry.build(images, **case.model.options).train()
    except ValueError as error:
        if (reason := _refused_arguments(error)) is not None:
            raise Unsupported(f"{case.model} cannot be built: {reason}") from error
        raise


def criterion_of(model: str, images: ImageSpec) -> Callable[[Any, Tensor], Tensor]:
    """`(output, labels) -> loss` of a model of the catalog on these images. Raises UnknownNameError."""
    return catalog.model(model).loss or LOSSES[images.task]


def build_workload(case: Case, images: ImageSpec, protocol: Protocol, device: torch.device) -> Workload:
    """Everything of the case but its batches, on the device.

    The order of moves is part of the contract, since it decides addresses: the model first (then its memory format),
    the optimizer over the moved parameters, and after this function the first batch.

    Raises:
        Unsupported: The model or the optimizer cannot train this case.
        UnknownNameError: No such model or optimizer.
    """
    own = catalog.model(case.model.name)
    if own.step is not None:
        _refuse_for_own_step(case)
    torch.manual_seed(protocol.seed)
    model = build_model(case, images).to(device)
    if case.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
    entry = catalog.optimizer(case.optimizer.name)
    if case.checkpointing == "blocks":
        checkpoint_blocks(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if entry.refuse_reason is not None and (reason := entry.refuse_reason(shapes, case.optimizer.options)):
        raise Unsupported(reason)
    build = functools.partial(entry.build, **case.optimizer.options)
    try:
        optimizer = UpdateInBackward(build, parameters) if case.update == "in_backward" else build(parameters)
    except (RuntimeError, ValueError, TypeError) as error:
        if (reason := refusal_of(error) or _refused_arguments(error)) is not None:
            raise Unsupported(f"{case.optimizer} cannot be built: {reason}") from error
        raise
    if any(map(takes_closure, parts_of(optimizer))) and (reason := refuse_closure(case)):
        raise Unsupported(reason)
    scaler = torch.amp.GradScaler(device.type) if case.precision == "fp16" else None
    compiled = protocol.compiled or case.compile != "false"
    return Workload(
        cast(nn.Module, torch.compile(model)) if compiled else model,
        optimizer,
        device,
        AUTOCAST_TYPES.get(case.precision),
        scaler,
        criterion_of(case.model.name, images),
        accumulation=case.accumulation,
        set_to_none=case.zero_grad == "none",
        refuse_error=functools.partial(own.refuse_error, images, case.model.options),
        own_step=own.step,
    )


def _refuse_for_own_step(case: Case) -> None:
    """Raise Unsupported where an axis asks for what a step of the model's own decides by itself."""
    usual = {"precision": "float32", "memory_format": "contiguous", "accumulation": 1, "zero_grad": "none"}
    for axis, value in usual.items():
        if (given := getattr(case, axis)) != value:
            raise Unsupported(f"{axis}={given}: {case.model} has a training step of its own, which decides that itself")


@contextlib.contextmanager
def numeric_modes(case: Case, protocol: Protocol) -> Iterator[None]:
    """Set every switch that decides which kernels run, explicitly, for the duration of the context.

    TF32 is on for `tf32` only, in all products alike; torch's default has it on in convolutions.
    `deterministic` is `torch.use_deterministic_algorithms` as a script calls it: operators without a deterministic form
    raise, new tensors are filled, and cuBLAS has the workspaces with which it is deterministic. Those are read when its
    first handle is made, so enter this before anything runs on the GPU.

    Raises:
        Unsupported: Within the context an operator has no deterministic form; the message names it.
    """
    before = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    algorithms = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filling = cast(Any, torch.utils.deterministic)  # a module with a property, which types do not know
    filled, workspaces = filling.fill_uninitialized_memory, os.environ.get(_WORKSPACES)
    _set_cudnn(protocol.cudnn_benchmark, protocol.deterministic)
    torch.use_deterministic_algorithms(protocol.deterministic)
    filling.fill_uninitialized_memory = True  # torch's default, and without effect otherwise
    _set_workspaces(cublas_workspaces(os.environ, deterministic=protocol.deterministic))
    try:
        with rounded_for(case.precision), _activation_budget(case.compile):
            yield
    except RuntimeError as error:
        if protocol.deterministic and (found := _NOT_DETERMINISTIC.search(str(error))):
            said = f"deterministic is on, but torch has no deterministic form of {found[1]}"
            raise Unsupported(f"{said}; turn measure.deterministic off here") from error
        raise
    finally:
        _set_cudnn(*before)
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        filling.fill_uninitialized_memory = filled
        _set_workspaces(workspaces)


def _activation_budget(compile: str) -> contextlib.AbstractContextManager[Any]:
    """Inductor's share of the activations that the backward may find saved, where the case sets one."""
    _, _, budget = compile.partition("budget=")
    if not budget:
        return contextlib.nullcontext()
    from torch._functorch import config

    return cast(Any, config).patch(activation_memory_budget=float(budget))  # type: ignore[no-any-return]


_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
"""aten/src/ATen/Context.cpp, `alertNotDeterministic`."""


def _set_workspaces(value: str | None) -> None:
    if value is None:
        os.environ.pop(_WORKSPACES, None)
    else:
        os.environ[_WORKSPACES] = value


def _set_cudnn(benchmark: bool, deterministic: bool) -> None:
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
