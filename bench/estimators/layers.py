"""A model as a table of layers, and what the formula needs from it, without computing anything.

Models are built and run on torch's meta device: shapes only, no memory, no arithmetic, no random numbers drawn. One
that cannot run there (it reads values of tensors, or an operator cannot infer shapes without them) is built and run
once on the CPU, on a few random images.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench import catalog
from bench.errors import BenchError, ReadsValues, Unsupported, first_line, message_of, place_of
from bench.estimators.fake_cuda.kernels import COPY_TO_HOST, reads_values
from bench.estimators.recording import ModelShapes
from bench.records import Choice, ImageSpec
from bench.workload.checkpointing import find_blocks, has_own_switch

ELEMENT_BYTES = 4
"""Layers are listed in float32."""

_PROBE_BATCH = 11
"""One sample's shape is had from several, since batch norm in training refuses one value per channel; from a prime
number, so that a leading dimension which it divides is the batch, or windows of the batch."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table.

    Attributes:
        path: Where it stands in the model, as torch names it; `(model)` for the model itself.
        kind: Its class.
        output_shape: Of one sample, without the batch; windows that stand in the batch dimension come first.
        parameters: How many numbers it owns itself, or uses of parts that are not called (attention's projections).
            Rows add up to the model's parameters.
        output_bytes: Bytes of all its outputs for the batch, in float32.
        activation_bytes: What the formula counts of that: all of it where the layer has parameters and its output is
            not the prediction, else 0. Rows add up to the formula's activations.
        calls: How often one forward pass calls it.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    output_bytes: int
    activation_bytes: int
    calls: int = 1


def build_on_meta(model: Choice, images: ImageSpec) -> nn.Module:
    """The model in training mode with its parameters and buffers on the meta device; takes no memory.

    Raises:
        Unsupported: The model cannot take these images.
        UnknownNameError: No such model.
    """
    entry = catalog.model(model.name)
    if reason := entry.refusal(images, model.options):
        raise Unsupported(reason)
    with values_refused(), _BlankTensorsOnMeta():
        built = entry.build(images, **model.options)
    return built.to("meta").train()


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """A model's layers, and how they were found.

    Attributes:
        layers: As `layer_table` lists them.
        note: Why the model had to be run on random images, in which case other images may take another course; None
            where it had not.
        blocks: Paths of what `checkpointing` computes again; None where the model has a switch of its own.
    """

    layers: tuple[Layer, ...]
    note: str | None = None
    blocks: tuple[str, ...] | None = ()


def list_layers(model: Choice, images: ImageSpec, batch_size: int = 1) -> ModelLayers:
    """The layers of a model of the catalog. Raises what `layer_table` and the model's own code raise."""
    probed = _probe_model(model, images)
    blocks = None if has_own_switch(probed.built) else tuple(find_blocks(probed.built))
    return ModelLayers(tuple(_layer(record, batch_size) for record in probed.records), probed.note, blocks)


@dataclass(frozen=True, slots=True)
class _Probed:
    """A model and what was seen of it."""

    built: nn.Module
    records: list[_Record]
    note: str | None = None


def _probe_model(model: Choice, images: ImageSpec) -> _Probed:
    """See a model run: without values where that can be, else on random images.

    Raises:
        BenchError: The model cannot take these images, or its settings are not valid.
        Exception: Whatever it raises with values; what it raises without them may be no fault of its own.
    """
    entry = catalog.model(model.name)
    if reason := entry.refusal(images, model.options):
        raise Unsupported(reason)
    try:
        built = build_on_meta(model, images)
        return _Probed(built, _records(built, images))
    except Exception as error:
        if reason := entry.refuse_error(images, model.options, error):
            raise Unsupported(reason) from error
        # for the rest, what it raises with values is what counts
        why = message_of(error) if isinstance(error, BenchError) else f"without values it raises {type(error).__name__}"
    try:
        with torch.random.fork_rng(devices=[]), refusals_in_words():
            built = entry.build(images, **model.options).train()
            records = _records(built, images, values=True)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if reason := entry.refuse_error(images, model.options, error):
            raise Unsupported(reason) from error
        raise
    return _Probed(built, records, f"shapes taken from a run on random images: {why}")


def layer_table(model: nn.Module, images: ImageSpec, batch_size: int = 1) -> tuple[Layer, ...]:
    """The model's layers in the order in which they finish.

    A layer is a module that is called and calls no other module, or that computes with parts which it does not call; a
    module which merely owns parameters of its own (a position embedding) is listed for them, its output counted with
    the layers inside it. The model is left as it was: its tensors are swapped for meta ones while it runs, its random
    generator and running statistics are untouched.

    Args:
        model: On any device, the meta device included.
        images: Shape of one sample.
        batch_size: How many samples the bytes are for.
    """
    return tuple(_layer(record, batch_size) for record in _records(model, images))


@functools.lru_cache(maxsize=1024)
def model_shapes(model: Choice, images: ImageSpec) -> ModelShapes:
    """Parameter shapes and layer outputs of a model of the catalog; cached, so that a grid builds each only once.

    Raises:
        Unsupported: The model cannot take these images.
        UnknownNameError: No such model.
    """
    probed = _probe_model(model, images)
    built, counted = probed.built, [record for record in probed.records if record.counted]
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    return ModelShapes(
        trained=tuple(tuple(parameter.shape) for parameter in trained),
        parameter_bytes=sum(parameter.nbytes for parameter in built.parameters()),
        trained_bytes=sum(parameter.nbytes for parameter in trained),
        sample_elements=sum(record.sample_elements for record in counted),
        fixed_elements=sum(record.fixed_elements for record in counted),
    )


class _Values(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what asks for the values of tensors on the meta device, which have none."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `operator`. Raises ReadsValues."""
        named = kwargs or {}
        refuse_reading(operator, args, named)
        return operator(*args, **named)


def refuse_reading(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse an operator that needs values of tensors on the meta device. Raises ReadsValues."""
    name = operator.name()
    if reads_values(name, [*args, *kwargs.values()]):
        if any(tensor.is_meta for tensor in _tensors([*args, *kwargs.values()])):
            raise ReadsValues(name)
    elif name in ("aten::copy_", "aten::_to_copy"):
        source = args[1] if name == "aten::copy_" else args[0]
        target = args[0].device if name == "aten::copy_" else kwargs.get("device") or source.device
        if source.is_meta and torch.device(target).type != "meta":
            raise ReadsValues(COPY_TO_HOST)


@contextmanager
def values_refused() -> Iterator[None]:
    """While entered, a model that asks for values of tensors on the meta device is refused. Raises ReadsValues."""
    with _Values(), refusals_in_words():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """Tell what torch refuses to do for a case from what the case's own code raises, which is left as it is.

    Raises:
        ReadsValues: `.numpy()` of a tensor that is not on the CPU; torch calls that a wrong type.
        Unsupported: Torch does not train this (one value per channel in a batch norm), or an operator of it does not
            know the shape of its result without data.
    """
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        message, frames = message_of(error), list(traceback.walk_tb(error.__traceback__))
        place = place_of(reversed(frames))
        if isinstance(error, TypeError) and "device type tensor to numpy" in message:
            raise ReadsValues("Tensor.numpy", place) from error
        if isinstance(error, ValueError) and str(frames[-1][0].f_globals.get("__name__")).startswith("torch."):
            raise Unsupported(f"the step cannot run: {first_line(error)}") from error
        if isinstance(error, NotImplementedError) and "with Meta tensors" in message:
            operator = re.search(r"\w+::[\w.]+", message)
            called = f", which {place} calls" if place else ""
            raise Unsupported(
                f"torch cannot infer shapes without data for {operator[0] if operator else 'an operator'}{called}"
            ) from error
        raise


class _BlankTensorsOnMeta(TorchFunctionMode):
    """Puts tensors that hold no computed values on the meta device, and leaves the others where they are.

    `torch.device("meta")` would take the small index tables too, which some models read back while they are built.
    """

    BLANK = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `function`, on the meta device where it makes a blank tensor and no device is named."""
        named = dict(kwargs or {})
        if function in self.BLANK and named.get("device") is None:
            named["device"] = "meta"
        return function(*args, **named)


@dataclass(slots=True)
class _Record:
    """What was seen of one module in the probe."""

    path: str
    kind: str
    shape: tuple[int, ...] = ()
    sample_elements: int = 0
    fixed_elements: int = 0
    calls: int = 0
    parameters: int = 0
    is_layer: bool = True
    is_prediction: bool = False
    last: Tensor | None = field(default=None, repr=False)

    @property
    def counted(self) -> bool:
        return self.is_layer and self.parameters > 0 and not self.is_prediction

    def see(self, outputs: list[Tensor]) -> None:
        """Note one call's outputs."""
        self.calls += 1
        for output in reversed(outputs):
            batched = output.dim() > 0 and output.shape[0] % _PROBE_BATCH == 0
            count = output.numel()
            self.sample_elements += count // _PROBE_BATCH if batched else 0
            self.fixed_elements += 0 if batched else count
            windows = output.shape[0] // _PROBE_BATCH if batched else 1
            self.shape = (*((windows,) if windows > 1 else ()), *output.shape[1:])
            self.last = output


def _layer(record: _Record, batch_size: int) -> Layer:
    outputs = (record.sample_elements * batch_size + record.fixed_elements) * ELEMENT_BYTES if record.is_layer else 0
    return Layer(
        path=record.path or "(model)",
        kind=record.kind,
        output_shape=record.shape,
        parameters=record.parameters,
        output_bytes=outputs,
        activation_bytes=outputs if record.counted else 0,
        calls=record.calls,
    )


def _records(model: nn.Module, images: ImageSpec, *, values: bool = False) -> list[_Record]:
    """Run the model once, on the meta device or with `values` where it is, and keep the rows of the table."""
    seen: dict[str, _Record] = {}
    predictions = _probe(model, images, seen, values)
    callers = {path[:end] for path in seen for end, letter in enumerate(path) if letter == "."} | {""}
    for path, record in seen.items():
        record.is_layer = path not in callers or len(seen) == 1
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        user = seen[_nearest_called(owner, seen)]
        user.parameters += parameter.numel()
        user.is_layer |= owner not in seen
    for record in seen.values():
        record.is_prediction = any(record.last is prediction for prediction in predictions)
        record.last = None
    return [record for record in seen.values() if record.is_layer or record.parameters]


def _nearest_called(path: str, seen: dict[str, _Record]) -> str:
    while path not in seen:
        path = path.rpartition(".")[0]
    return path


def _probe(model: nn.Module, images: ImageSpec, seen: dict[str, _Record], values: bool) -> list[Tensor]:
    """Fill `seen`, by path and in the order of finishing, and return the model's outputs."""
    device = None if values else "meta"
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = {name: tensor.clone() if values else torch.empty_like(tensor, device="meta") for name, tensor in named}
    batch = (torch.rand if values else torch.empty)(_PROBE_BATCH, *images.shape, device=device)
    with torch.no_grad(), _hooked(model, seen), nullcontext() if values else values_refused():
        return list(_tensors(torch.func.functional_call(model, tensors, (batch,))))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


@contextmanager
def _hooked(model: nn.Module, seen: dict[str, _Record]) -> Iterator[None]:
    """Note every module's outputs while the context lasts."""

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if path not in seen:
            seen[path] = _Record(path, type(module).__name__)
        seen[path].see(list(_tensors(output)))

    handles = [module.register_forward_hook(functools.partial(note, path)) for path, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
