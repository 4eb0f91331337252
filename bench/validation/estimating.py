"""Estimates for measurements from elsewhere, in a child: torch is imported where it is used.

For a peak reported by the driver, the whole run counts, on a device with the same free memory: if the plain estimate
exceeds the device's memory, a device of that size is simulated, so that cached blocks are released as in torch, and a
workspace that does not fit is omitted, as cuDNN's next plan mostly does.

Not modelled: cuDNN's choice is that of the installed cuDNN (>= 9.8), which may differ from that of the one that ran;
GPUs that it no longer supports (Volta) get no workspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench import catalog
from bench.devices import Device, load_device
from bench.errors import BenchError, Unsupported
from bench.records import Case, ImageSpec
from bench.validation.rows import Measured, TrainingLoop

if TYPE_CHECKING:
    import torch

    from bench.estimators.allocator import Event
    from bench.estimators.cudnn_plans import CudnnPlans
    from bench.estimators.memory_settings import MemorySettings
    from bench.estimators.recording import Column, Recording
    from bench.estimators.temporaries import Machine


class ForeignTraining:
    """A model, its optimizer and a loop that loads a batch each step; see `trace.Training`."""

    def __init__(self, row: Measured, batch_size: int, device: torch.device) -> None:
        """Build the row's model and optimizer on the device, the model first.

        Raises:
            Unsupported: The model cannot take these images, or the optimizer cannot train it.
        """
        from torch import nn

        entry = catalog.model(row.model.name)
        if reason := entry.refusal(row.images, row.model.options):
            raise Unsupported(reason)
        self.model: nn.Module = entry.build(row.images, **row.model.options).train().to(device)
        optimizer = catalog.optimizer(row.optimizer.name)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        shapes = [tuple(parameter.shape) for parameter in parameters]
        if optimizer.refuse_reason is not None and (reason := optimizer.refuse_reason(shapes, row.optimizer.options)):
            raise Unsupported(reason)
        self.optimizer = optimizer.build(parameters, **row.optimizer.options)
        self.batch: tuple[torch.Tensor, ...] = ()
        self._loss_of = nn.CrossEntropyLoss()
        self._loop, self._images, self._batch_size, self._device = (
            row.loop or TrainingLoop(),
            row.images,
            batch_size,
            device,
        )
        self._output: torch.Tensor | None = None
        self._loss: torch.Tensor | None = None
        self._maximum: object = None

    def step(self) -> None:
        """One turn of the loop: each name lets go of its last value when the new one is there, the batch before."""
        if self._loop.zero_grad == "before_batch":
            self.optimizer.zero_grad(set_to_none=not self._loop.keeps_gradients)
        self.batch = ()
        self.batch = _load(self._images, self._batch_size, self._device)
        self._output = self.model(self.batch[0])
        self._loss = self._loss_of(self._output, self.batch[1])
        if self._loop.zero_grad == "before_backward":
            self.optimizer.zero_grad(set_to_none=not self._loop.keeps_gradients)
        self._loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self.optimizer.step()
        if self._loop.keeps_maximum:
            self._maximum = self._output.max(1)


def _load(images: ImageSpec, batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    pixels = torch.empty(batch_size, *images.shape)
    return pixels.to(device), torch.zeros(batch_size, dtype=torch.int64).to(device)


def building(row: Measured, batch_size: int) -> Callable[[torch.device], ForeignTraining]:
    """What `record_training` wants: a function of the device."""
    return lambda device: ForeignTraining(row, batch_size, device)


TAKEN_BYTES = 200 << 20
"""What the context is taken to hold where a device is nearly full and its file does not say; typical of torch 2."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """A row with its estimate.

    Attributes:
        line: As in `Measured`, and so are device, family, quantity and measured_bytes.
        device: See line.
        family: See line.
        case: What ran, as text.
        quantity: See line.
        measured_bytes: See line.
        estimated_bytes: None if the estimator refused. For a peak of the driver's: without the context.
        note: Why it refused, or what is not modelled.
        formula_bytes: The founding formula's estimate, without the context; None if there is none.
        published: See line.
    """

    line: int
    device: str
    family: str
    case: str
    quantity: str
    measured_bytes: int
    estimated_bytes: int | None = None
    note: str | None = None
    formula_bytes: int | None = None
    published: tuple[tuple[str, int], ...] = ()


def group_rows(rows: Sequence[Measured]) -> list[list[Measured]]:
    """Rows that recordings can serve together: alike but in batch size, GPU within an architecture, and quantity."""
    groups: dict[Any, list[Measured]] = {}
    for row in rows:
        loop = replace(row.loop, torch_version=None, workspaces="all") if row.loop else None
        capability = load_device(row.device).compute_capability
        key = (row.dataset, row.model, row.optimizer, row.images, row.precision, row.memory_format, loop, capability)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def estimate_rows(rows: Sequence[Measured], workspaces: bool) -> Iterator[Estimated]:
    """An estimate for each row, in any order.

    Args:
        rows: Of any devices.
        workspaces: Whether to ask cuDNN for those of convolutions.
    """
    plans: dict[str, CudnnPlans | str] = {}
    for group in group_rows(rows):
        entries = _Entries(group)
        for row in group:
            blank = replace(describe(row), formula_bytes=_formula(row))
            try:
                yield replace(blank, **_estimate(row, entries, plans, workspaces))
            except BenchError as error:
                yield replace(blank, note=str(error))


def describe(row: Measured) -> Estimated:
    """The row without its estimate."""
    side = f"{row.images.height}x{row.images.width}"
    case = f"{row.model}, {row.optimizer}, batch {row.batch_size}, {side}"
    return Estimated(row.line, row.device, row.family, case, row.quantity, row.measured_bytes, published=row.published)


def _formula(row: Measured) -> int | None:
    """The formula's total, less the parameters where the measurement began after they were on the device."""
    from bench.estimators.formula import estimate_formula

    case = Case(row.dataset, row.model, row.optimizer, row.batch_size, row.precision, row.memory_format)
    try:
        parts = estimate_formula(case, row.images)
    except BenchError:  # the trace says why in its note
        return None
    total, parameters = parts["formula_bytes"], parts["formula_parameters_bytes"]
    return None if total is None else total - (parameters or 0) * row.after_setup


def _estimate(row: Measured, entries: _Entries, plans: dict[str, CudnnPlans | str], workspaces: bool) -> dict[str, Any]:
    from bench.estimators.events import build_events
    from bench.estimators.workspaces import add_workspaces

    device = _device(row)
    machine = _machine(row)
    found = entries.at(row, machine)
    note = None
    which = row.loop.workspaces if row.loop else "all"
    if workspaces and which != "none":
        asked = _plans(device, plans)
        if isinstance(asked, str):
            note = asked
        else:
            tf32 = row.loop is not None or row.precision != "float32"
            found = add_workspaces(found, asked, tf32=tf32, pointwise=which == "all")
    events = build_events(found, machine)
    return {"estimated_bytes": _bytes(row, device, events), "note": note}


def _bytes(row: Measured, device: Device, events: list[Event]) -> int:
    from bench.estimators.events import replay_trace

    config = _settings(row).allocator_config(device.memory_bytes)
    peaks = replay_trace(events, config)
    if row.quantity == "allocated":
        return peaks.allocated_bytes
    if row.quantity == "reserved":
        return peaks.reserved_bytes
    total = row.capacity_bytes or device.memory_bytes
    room = total - (device.context_bytes or TAKEN_BYTES) if total else None
    if room is not None and peaks.cold_reserved_bytes > room:
        peaks = replay_trace(events, replace(config, capacity_bytes=room))
        if peaks.replay.out_of_memory is not None:
            raise BenchError(f"by the estimate, the step does not fit in the {room} B that the context leaves")
    return peaks.cold_reserved_bytes - (peaks.replay.marks[0].reserved if row.after_setup else 0)


class _Entries:
    """The recordings of one group: one for two batch sizes that serve all, or one for each batch size."""

    def __init__(self, group: Sequence[Measured]) -> None:
        self._batches = {row.batch_size for row in group}
        self._column: Column | None = None
        self._single: dict[int, Recording] = {}
        self._refused = False

    def at(self, row: Measured, machine: Machine) -> Recording:
        """The recording at the row's batch size. Raises Unsupported."""
        from bench.estimators.recording import LEAST_BATCH, TRACED_BATCHES, join_column

        shared = len(self._batches) > len(TRACED_BATCHES) and row.batch_size >= LEAST_BATCH
        if shared and self._column is None and not self._refused:
            first, second = TRACED_BATCHES
            try:
                one, other = (_record(row, size, machine) for size in TRACED_BATCHES)
                self._column = join_column(first, one, second, other)
            except BenchError:
                self._refused = True
        if shared and self._column is not None:
            return self._column.at(row.batch_size)
        if row.batch_size not in self._single:
            self._single[row.batch_size] = _record(row, row.batch_size, machine)
        return self._single[row.batch_size]


def _record(row: Measured, batch_size: int, machine: Machine) -> Recording:
    from bench.estimators.record import record_case, record_training

    if row.loop is not None:
        return record_training(building(row, batch_size), None, machine.compute_capability, machine.properties)
    case = Case(
        row.dataset,
        row.model,
        row.optimizer,
        batch_size,
        row.precision,
        row.memory_format,
        image_size=row.images.height,
    )
    return record_case(case, machine)


def _device(row: Measured) -> Device:
    return load_device(row.device)


def _machine(row: Measured) -> Machine:
    from bench.estimators.kept import machine_of

    return machine_of(_device(row), _settings(row))


def _settings(row: Measured) -> MemorySettings:
    """Those of this environment for the project's own loop; a version's defaults for a loop from elsewhere."""
    import torch

    from bench.estimators.memory_settings import MemorySettings, settings_in_force

    if row.loop is None:
        return settings_in_force()
    version = row.loop.torch_version
    return MemorySettings(f"{version[0]}.{version[1]}" if version else torch.__version__)


def _plans(device: Device, known: dict[str, CudnnPlans | str]) -> CudnnPlans | str:
    """What cuDNN would run on the device, or why it cannot be asked."""
    from bench.estimators.cudnn_plans import CudnnPlans

    if device.name not in known:
        try:
            known[device.name] = CudnnPlans(device)
        except BenchError as error:
            known[device.name] = str(error)
    return known[device.name]
