"""The training step as a list of kernels, recorded on the meta device: nothing is computed and no GPU is asked.

The step is `bench.workload`'s, with the model's forward, the loss and the backward recorded in one, and the optimizer's
own `step` in another recording, since it does not depend on the batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bench import catalog
from bench.errors import Unsupported
from bench.estimators.layers import build_on_meta, model_shapes, refusals_in_words, refuse_reading
from bench.estimators.roofline.autocasting import CudaLike
from bench.estimators.roofline.operators import Kernel, list_kernels
from bench.records import Choice, ImageSpec
from bench.workload.step import Workload, criterion_of

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
_META = torch.device("meta")
_FLOAT32_BYTES = 4


class Recorded(list[tuple[str, str, Kernel]]):
    """`(phase, operator, kernel)` in order."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the kernels of every operator that runs while it is entered."""

    def __init__(self, answers_items: bool = False) -> None:
        """Record nothing yet; `answers_items` makes 1 the value of every element that the host asks for."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.answers_items = answers_items
        self.phase = FORWARD
        self.recorded = Recorded()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator on the meta device and note its kernels."""
        named = kwargs or {}
        if self.answers_items and operator is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0 if args[0].is_floating_point() else 1
        refuse_reading(operator, args, named)
        result = operator(*args, **named)
        name = operator._schema.name.removeprefix("aten::")
        self.recorded += [(self.phase, name, kernel) for kernel in list_kernels(operator, args, named, result)]
        return result


class _Idle:
    """An optimizer that does nothing; the real one is recorded by itself."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to drop: the first step has no gradients."""

    def step(self) -> None:
        """Nothing."""


class _MetaWorkload(Workload):
    """The step with its autocast in the form that the meta device has, and the end of the forward noted."""

    recorder: _Recorder

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        with CudaLike(self.autocast_type):
            yield
        self.recorder.phase = BACKWARD


def record_step(
    model: Choice, images: ImageSpec, batch_size: int, autocast_type: torch.dtype | None = None
) -> Recorded:
    """Forward, loss and backward of one step of a model of the catalog; see `record_module`.

    Raises:
        UnknownNameError: No such model.
        Unsupported: The model cannot take these images, or what it does cannot be followed without data.
        ReadsValues: It asks for values of tensors.
        Exception: Whatever it raises of its own.
    """
    with refusals_in_words():
        built = build_on_meta(model, images)
        return record_module(built, images, batch_size, autocast_type, criterion_of(model.name))


def record_module(
    module: nn.Module,
    images: ImageSpec,
    batch_size: int,
    autocast_type: torch.dtype | None = None,
    criterion: Callable[[Any, Tensor], Tensor] = functional.cross_entropy,
) -> Recorded:
    """Forward, loss and backward of one step.

    Args:
        module: In training mode, on the meta device.
        images: Shape of one sample, and the classes.
        batch_size: How many samples.
        autocast_type: 16-bit type of autocast, or None for float32.
        criterion: `(output, labels) -> loss`.
    """
    recorder = _Recorder()
    workload = _MetaWorkload(module, _Idle(), _META, autocast_type, criterion=criterion)  # type: ignore[arg-type]
    workload.recorder = recorder
    pixels = torch.empty(batch_size, *images.shape, device=_META)
    labels = torch.empty(batch_size, dtype=torch.int64, device=_META)
    with recorder:
        workload.step(pixels, labels)
    return recorder.recorded


def record_optimizer(model: Choice, images: ImageSpec, optimizer: Choice, scaled: bool = False) -> Recorded:
    """One step of the optimizer, not its first (which makes its state).

    `capturable` is recorded as without, since it moves a few scalars only.

    Args:
        model: Whose parameters it trains.
        images: Shape of one sample, and the classes.
        optimizer: Of the catalog. `foreach`, torch's choice on a GPU, where neither it nor `fused` is given.
        scaled: Whether a gradient scaler looks through the gradients first (fp16).

    Raises:
        Unsupported: It cannot train these parameters, or is fused and nobody wrote down what state it keeps.
    """
    shapes = model_shapes(model, images).trained
    numbers = sum(math.prod(shape) for shape in shapes)
    entry, options = catalog.optimizer(optimizer.name), dict(optimizer.options)
    if entry.refuse_reason is not None and (reason := entry.refuse_reason(shapes, options)):
        raise Unsupported(reason)
    recorded = Recorded()
    if scaled:
        unscaling = Kernel("optimizer", nbytes=2 * _FLOAT32_BYTES * numbers, launches=_launches(shapes, 1))
        recorded.append((OPTIMIZER, "_amp_foreach_non_finite_check_and_unscale_", unscaling))
    if not options.pop("fused", None):
        options.pop("capturable", None)
        return Recorded(recorded + _recorded_updates(entry, options, shapes))
    state = entry.state_bytes(shapes, _FLOAT32_BYTES, optimizer.options) if entry.state_bytes else None
    if state is None:
        raise Unsupported(f"it is not written down what {optimizer.name} keeps, so its fused step has no known traffic")
    fused = Kernel("optimizer", nbytes=3 * _FLOAT32_BYTES * numbers + 2 * state, launches=_launches(shapes, 4))
    recorded.append((OPTIMIZER, "fused", fused))
    return recorded


def _recorded_updates(entry: Any, options: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Recorded:
    """The second step of the optimizer, in its `foreach` form unless the options say otherwise."""
    parameters = [nn.Parameter(torch.empty(shape, device=_META)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    recorder = _Recorder(answers_items=True)
    with refusals_in_words():
        built = entry.build(parameters, **options)
        for group in built.param_groups:
            if group.get("foreach", False) is None:
                group["foreach"] = True
        with recorder:
            built.step()
            recorder.recorded.clear()
            built.step()
    return Recorded((OPTIMIZER, name, kernel._replace(kind="optimizer")) for _, name, kernel in recorder.recorded)


def _launches(shapes: Sequence[tuple[int, ...]], lists: int) -> int:
    """Kernels of one operator over lists of tensors (aten/src/ATen/native/cuda/MultiTensorApply.cuh)."""
    tensors = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}[lists]
    chunks = sum(-(-math.prod(shape) // 65_536) for shape in shapes)
    return max(-(-len(shapes) // tensors), -(-chunks // 320))
