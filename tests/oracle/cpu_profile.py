"""A real training step on the CPU under torch's profiler, beside the trace of the same step: births and deaths.

Real values are computed and real memory is allocated. The profiler reports every allocation of torch's CPU allocator
with the operators that it happened in; from these, and from the trace, comes the same account: which bytes a step's
results hold at which moment. What is compared is the highest of it, step by step, and what is alive between steps.

What is set aside, and how:

* Scratch: what is allocated and freed within one operator that the trace knows as one kernel. The temporaries that the
  trace adds for CUDA's kernels are left out as well.
* Numbers that lie on the CPU in a run on a GPU too, so that the trace does not see them: optimizers' step counts, and
  the 8 B that a Python number takes while it is an operator's argument.
* Three choices that torch makes differently on the CPU. The trace is made to choose as the CPU does (`COMPOSITES`):
  batch norm runs torch's own kernel instead of cuDNN's, dropout multiplies by noise in the input's type instead of
  keeping a mask, and attention runs the CPU's flash kernel.

All else is compared as it is: convolutions, products, norms, pooling, activations, losses, optimizers and the whole of
autograd. It needs a process of its own, like every trace.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from bench import catalog
from bench.catalog.settling import settles_after
from bench.estimators import fake_cuda
from bench.estimators.record import ALIKE, record_case
from bench.estimators.recording import Call, Freed, Recording
from bench.estimators.temporaries import Machine
from bench.plan import image_spec
from bench.records import Case, Protocol
from bench.workload import build_workload
from bench.workload.inputs import build_inputs

NUMBER_BYTES = 8
"""Of a Python number as a tensor: float64 or int64."""
_MARK = "oracle.mark"
_MACHINE = Machine(132, 2048, (9, 0), tuple(map(int, torch.__version__.split(".")[:2])))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Account:
    """What results held, in bytes.

    Attributes:
        alive: Before the first step and after each.
        peaks: The highest of each step.
    """

    alive: tuple[int, ...]
    peaks: tuple[int, ...]


def compare_on_cpu(case: Case) -> tuple[Account, Account]:
    """The accounts of a real run on the CPU and of the trace."""
    recording = trace_as_on_cpu(case)
    kernels = {entry.operator.partition(".")[0] for entry in recording.entries if isinstance(entry, Call)}
    return account_of_run(case, kernels), account_of_trace(recording)


def trace_as_on_cpu(case: Case) -> Recording:
    """The trace of a case whose composite operators choose as they do on the CPU."""
    with mock.patch.object(fake_cuda, "build_composites", lambda capability: COMPOSITES):
        return record_case(case, _MACHINE)


def _batch_norm(
    image: torch.Tensor,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    """Torch's own kernel (aten/src/ATen/native/Normalization.cpp: _batch_norm_impl_index)."""
    result: torch.Tensor = torch.ops.aten.native_batch_norm(
        image, weight, bias, mean, variance, training, momentum, eps
    )[0]
    return result


def _dropout(source: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """Noise in the input's type (aten/src/ATen/native/Dropout.cpp: _dropout_impl)."""
    if p == 0 or not train or source.numel() == 0:
        return source
    return source * torch.empty_like(source).bernoulli_(1 - p).div_(1 - p)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The CPU's flash kernel (aten/src/ATen/native/transformers/attention.cpp: scaled_dot_product_attention)."""
    result: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return result


COMPOSITES: dict[str, Callable[..., Any]] = {
    "batch_norm": _batch_norm,
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
}
"""Composite operators that choose another kernel on the CPU than on CUDA."""


def account_of_trace(recording: Recording) -> Account:
    """The account of a recording's results, without the temporaries of kernels."""
    changes: list[tuple[int, int] | None] = []
    for entry in recording.entries:
        if isinstance(entry, Call):
            changes += [(output.storage, output.nbytes) for output in entry.outputs]
        elif isinstance(entry, Freed):
            changes.append((entry.storage, 0))
        else:
            changes.append(None)
    return _account(changes)


def _account(changes: Sequence[tuple[int, int] | None]) -> Account:
    """Of `(name, bytes)` births, `(name, 0)` deaths and marks."""
    live: dict[int, int] = {}
    held = 0
    alive, peaks = list[int](), list[int]()
    for change in changes:
        if change is None:
            alive.append(held)
            peaks.append(held)
            continue
        name, size = change
        held += size - live.pop(name, 0)
        if size:
            live[name] = size
        if peaks:
            peaks[-1] = max(peaks[-1], held)
    return Account(tuple(alive), tuple(peaks[:-1]))


@dataclass(frozen=True)
class Allocation:
    """An event of the CPU's allocator: bytes gained or, below 0, lost; `kernel` numbers the call that it is part of."""

    address: int
    size: int
    kernel: int | None
    in_operator: bool


def account_of_run(case: Case, kernels: Collection[str]) -> Account:
    """The account of a real run's results, without what `kernels` allocate and free within one call."""
    events, counts = _profile(case, kernels)
    return _account(list(results_of(events, counts)))


def _profile(case: Case, kernels: Collection[str]) -> tuple[list[Allocation | None], set[int]]:
    """The allocator's events with a None for each mark, and the addresses of optimizers' step counts."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notices
    protocol, device = Protocol(), torch.device("cpu")
    profiler: Any = torch.autograd.profiler.profile

    def mark() -> None:
        with torch.profiler.record_function(_MARK):
            pass

    gc.collect()
    gc.disable()
    try:
        with profiler(use_kineto=True, profile_memory=True) as profiled:
            workload = build_workload(case, image_spec(case.dataset, case.image_size), protocol, device)
            inputs = build_inputs(case, catalog.describe_dataset(case.dataset), protocol, device)
            mark()
            for _ in range(settles_after(workload.optimizer) + ALIKE):
                workload.step(inputs)
                mark()
        states = workload.optimizer.state.values()
        names = () if case.optimizer.name == "asgd" else ("step", "mu_product")  # asgd's are on the GPU in a run there
        counts = {
            state[name].data_ptr() for state in states for name in names if isinstance(state.get(name), torch.Tensor)
        }
    finally:
        gc.enable()
    return list(_events(profiled, kernels)), counts


def _events(profiled: Any, kernels: Collection[str]) -> Iterator[Allocation | None]:
    """Events in order of time, from the profiler's tree of raw events, which is walked without recursion."""
    timed: list[tuple[int, int, Allocation | None]] = []
    calls = 0
    waiting: list[tuple[Any, int | None, bool]] = [
        (node, None, False) for node in reversed(profiled.kineto_results.experimental_event_tree())
    ]
    while waiting:
        node, kernel, in_operator = waiting.pop()
        number = len(timed)
        if node.name == _MARK:
            timed.append((node.start_time_ns, number, None))
        elif node.tag.name == "Allocation":
            fields = node.extra_fields
            event = Allocation(fields.ptr, fields.alloc_size, kernel, in_operator)
            timed.append((node.start_time_ns, number, event))
        elif node.name.startswith("aten::"):
            in_operator = True
            if kernel is None and node.name in kernels:
                kernel, calls = calls, calls + 1
        waiting += [(child, kernel, in_operator) for child in reversed(node.children)]
    for _, _, event_or_mark in sorted(timed, key=lambda each: each[:2]):
        yield event_or_mark


def results_of(events: Sequence[Allocation | None], counts: set[int]) -> Iterator[tuple[int, int] | None]:
    """Births and deaths of results, named by the birth's position."""
    left_out = _left_out(events, counts)
    live: dict[int, int] = {}
    for index, event in enumerate(events):
        if event is None:
            yield None
        elif event.size > 0 and index not in left_out:
            live[event.address] = index
            yield index, event.size
        elif event.size < 0 and event.address in live:
            yield live.pop(event.address), 0


def _left_out(events: Sequence[Allocation | None], counts: set[int]) -> set[int]:
    """Positions of allocations that are scratch, numbers on their way into an operator, or optimizers' step counts."""
    found: set[int] = set()
    born: dict[int, tuple[int, Allocation]] = {}
    for index, event in enumerate(events):
        if event is None:
            continue
        if event.size > 0:
            born[event.address] = index, event
            if event.size == NUMBER_BYTES and not event.in_operator:
                found.add(index)
        elif event.address in born:
            birth, first = born.pop(event.address)
            if first.kernel is not None and first.kernel == event.kernel:
                found.add(birth)
    return found | {index for address, (index, _) in born.items() if address in counts}
