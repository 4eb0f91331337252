"""Memory as torch's allocators count it: the caching allocator on a GPU, the profiler's event stream on the CPU.

On CUDA, ROCm and XPU, `allocated` is what tensors hold after rounding to 512 B, `requested` what they asked for,
`reserved` what the allocator holds of the device (c10/cuda/CUDACachingAllocator.cpp; torch.cuda.memory_stats; XPU's is
written after it: c10/xpu/XPUCachingAllocator.cpp). On the CPU there is no cache and no rounding: allocated and
requested are the same, and reserved does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import DeviceError
from bench.units import MIB, format_bytes

MemoryKind = Literal["dedicated", "unified", "slice"]

_MARK = "bench.memory.mark"
_LEAST_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer of c10/core/CachingDeviceAllocator.h


@dataclass(frozen=True, slots=True)
class TorchPeaks:
    """Peaks of the caching allocator in bytes since the last reset; None if the allocator keeps no such count."""

    allocated_bytes: int | None = None
    requested_bytes: int | None = None
    reserved_bytes: int | None = None


def start_gpu(used_bytes: int | None = None, kind: str = "cuda") -> None:
    """Make this process's context on the current GPU, before anything of a case is there.

    Args:
        used_bytes: What others hold of the device, for the message.
        kind: As torch calls it.

    Raises:
        DeviceError: The GPU is lost, held exclusively by another process, full, or broken.
    """
    import torch

    try:
        getattr(torch, kind).synchronize()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without this kind
        held = f" ({format_bytes(used_bytes)} of it already in use)" if used_bytes else ""
        raise DeviceError(f"the GPU cannot be initialised{held}: {str(error).strip().partition(chr(10))[0]}") from error


def memory_kind(properties: Any) -> MemoryKind:
    """What a GPU's memory is: its own, the host's (GB10, Jetson, MI300A), or a MIG slice's share of a board's.

    A GH200 has memory of its own: CUDA does not call it integrated, and NVML tells of its HBM. A slice of a GPU that
    takes host memory takes host memory.

    Args:
        properties: As `torch.cuda.get_device_properties` gives them, or that of `torch.xpu`.
    """
    if getattr(properties, "is_integrated", False) or getattr(properties, "is_integrated_gpu", False):
        return "unified"
    return "slice" if " MIG " in properties.name else "dedicated"


class GpuMemory:
    """The caching allocator of one GPU. Reading it needs no synchronisation: the counts are the host's.

    Attributes:
        kind: As torch calls the GPU; the functions are those of `torch.<kind>`.
    """

    kind = "cuda"

    def __init__(self, index: int | None = None) -> None:
        """Watch the GPU of torch's `index`; the current one where None."""
        self._index = index
        self._own_share: float | None = None  # of the device, by the allocator's settings, before any limit
        self._unified: bool | None = None

    @property
    def _torch(self) -> Any:
        import torch

        return getattr(torch, self.kind)

    @property
    def unified(self) -> bool:
        """Whether the GPU takes host memory: what CUDA then counts as the device's is the host's, of all processes."""
        if self._unified is None:
            self._unified = memory_kind(self._torch.get_device_properties(self._index)) == "unified"
        return self._unified

    def _counts_requested(self) -> bool:
        return True

    def _free_and_total(self) -> tuple[int, int] | None:
        """In bytes; None where the driver does not tell."""
        found: tuple[int, int] = self._torch.mem_get_info(self._index)
        return found

    def reset(self) -> None:
        """Let the peaks start again from what is held now."""
        self._torch.reset_peak_memory_stats(self._index)

    def read_peaks(self) -> TorchPeaks:
        """The peaks since the start or the last reset.

        Without a cache (`PYTORCH_NO_CUDA_MEMORY_CACHING`) torch counts nothing, not even that it allocated: None, not
        0, as is whatever else an allocator does not count.
        """
        stats = self._torch.memory_stats(self._index)  # empty before the device is initialised
        if stats.get("allocated_bytes.all.allocated") == 0:  # ever
            return TorchPeaks()
        return TorchPeaks(
            stats.get("allocated_bytes.all.peak"),
            stats.get("requested_bytes.all.peak") if self._counts_requested() else None,
            stats.get("reserved_bytes.all.peak"),
        )

    def peaks(self) -> dict[str, int | None]:
        """The peaks under the names of their columns."""
        peaks = self.read_peaks()
        return {
            "peak_allocated_bytes": peaks.allocated_bytes,
            "peak_requested_bytes": peaks.requested_bytes,
            "peak_reserved_bytes": peaks.reserved_bytes,
        }

    def device_fields(self, used_before_bytes: int | None = None) -> dict[str, int | None]:
        """The columns `device_total_bytes`, `alloc_retries` and `context_bytes`; the sizes are None on unified memory.

        The context is what the device has in use beyond what torch's allocator holds: CUDA's context, the modules and
        kernels loaded so far, cuBLAS's and cuDNN's own memory. `cudaMemGetInfo` counts every process, so whatever
        others held before this run is taken off; what they take or give back during the run is not seen.

        Args:
            used_before_bytes: What the device had in use before this process touched it, from NVML; taken as nothing
                where None, which makes the context too large on a shared device.
        """
        stats = self._torch.memory_stats(self._index)
        info = None if self.unified else self._free_and_total()
        if info is None:
            return {"device_total_bytes": None, "alloc_retries": stats.get("num_alloc_retries"), "context_bytes": None}
        free, total = info
        reserved = stats.get("reserved_bytes.all.current")
        context = None if reserved is None else total - free - reserved - (used_before_bytes or 0)
        return {
            "device_total_bytes": total,
            "alloc_retries": stats.get("num_alloc_retries"),
            "context_bytes": context if context is not None and context > 0 else None,
        }

    def is_exhausted(self) -> bool:
        """Whether torch's allocator was refused memory so far, or the device has less left than its least segment."""
        if self._torch.memory_stats(self._index).get("num_ooms"):
            return True
        try:
            info = self._free_and_total()
        except RuntimeError:  # a context that is lost
            return False
        return info is not None and info[0] < _LEAST_SEGMENT_BYTES

    def play_card(self, limit_bytes: int, used_before_bytes: int | None = None) -> int:
        """Leave torch's allocator what a card of `limit_bytes` would leave it: the limit less this process's context.

        A context grows while modules are loaded, so call this again after the first steps. If more is reserved by then
        than is left, cached segments are released, as the allocator does on a card that is full. A share of the device
        in the allocator's settings (`per_process_memory_fraction`) is taken of the limit.

        Args:
            limit_bytes: Memory of the card that is played, at most that of the device.
            used_before_bytes: As for `device_fields`.

        Returns:
            What all segments may take, in bytes.
        """
        context = self.device_fields(used_before_bytes)["context_bytes"] or 0
        return self._hold(limit_bytes, limit_bytes - context)

    def share_host(self, limit_bytes: int, resident_bytes: int) -> int | None:
        """Leave torch's allocator what a limit on host memory leaves beside the process, where the GPU takes that.

        Args:
            limit_bytes: For the process and the GPU's memory together.
            resident_bytes: What the process holds by itself.

        Returns:
            What all segments may take, in bytes; None where this torch cannot limit it.
        """
        if not hasattr(self._torch, "set_per_process_memory_fraction"):
            return None
        return self._hold(limit_bytes, limit_bytes - resident_bytes)

    def _hold(self, limit_bytes: int, left_bytes: int) -> int:
        """Let segments take `left_bytes`, and of `limit_bytes` no more than the allocator's settings allow."""
        total = self._total_bytes()
        if self._own_share is None:
            self._own_share = (self.read_allowed() or total) / total
        allowed = max(0, min(left_bytes, int(self._own_share * limit_bytes)))
        share = min(1.0, (allowed + 0.25) / total)  # torch makes whole bytes of it: cut in 2.6, rounded in 2.15
        if not hasattr(self._torch, "set_per_process_memory_fraction"):
            raise DeviceError(f"torch.{self.kind} of this torch cannot limit memory; torch 2.10 and newer can")
        self._torch.set_per_process_memory_fraction(share, self._index)
        if self._torch.memory_reserved(self._index) > allowed:
            self._torch.empty_cache()
        return allowed

    def _total_bytes(self) -> int:
        """That a share of the memory is of."""
        info = self._free_and_total()
        return info[1] if info else int(self._torch.get_device_properties(self._index).total_memory)

    def read_allowed(self) -> int | None:
        """What all segments may take by torch's memory fraction, in bytes; None if this torch cannot tell."""
        read_share = getattr(self._torch, "get_per_process_memory_fraction", None)
        return round(read_share(self._index) * self._total_bytes()) if read_share else None


class CudaMemory(GpuMemory):
    """Of CUDA and ROCm. The `cudaMallocAsync` backend does not count what was requested."""

    def _counts_requested(self) -> bool:
        return bool(self._torch.get_allocator_backend() == "native")


@dataclass(frozen=True, slots=True)
class CpuPeak:
    """Exact peaks of torch's CPU allocations in bytes.

    Attributes:
        total_bytes: Over everything that was run.
        phase_bytes: Over what followed each mark, up to the next one or the end; what is alive at a mark counts in.
        end_bytes: Still held at the end.
    """

    total_bytes: int
    phase_bytes: tuple[int, ...]
    end_bytes: int

    @property
    def warm_bytes(self) -> int:
        """The peak after the last mark: of the last step, where each step is marked. The total where nothing is."""
        return self.phase_bytes[-1] if self.phase_bytes else self.total_bytes


def measure_cpu_peak(run: Callable[[Callable[[], None]], None]) -> CpuPeak:
    """Run `run` under torch's profiler and return the exact peak of what torch allocated on the CPU meanwhile.

    Take it in a separate pass: profiling slows steps down. Counted is what goes through torch's CPU allocator on the
    calling thread and in the backward pass it starts, from zero. Not counted: tensors that were there before, memory
    that NumPy, a loader's worker processes or oneDNN's and MKL's own buffers take, and other Python threads.

    Args:
        run: Makes everything that should count (model, optimizer, batch) and runs the steps. It is handed `mark`, to be
            called before each step; what it makes may be dropped at its end.

    Raises:
        RuntimeError: This torch's profiler has no memory events.
    """
    import torch

    def mark() -> None:
        with torch.profiler.record_function(_MARK):
            pass

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when profiling first starts; its notices go to stderr
    # torch.profiler.profile would do the same after importing the compiler, which takes seconds
    profiler: Any = torch.autograd.profiler.profile
    with profiler(use_kineto=True, profile_memory=True) as profiled:
        torch.empty(16)  # one event for certain, so that none at all means a profiler that is not understood
        run(mark)
    events = tuple(_cpu_events(profiled))
    if not any(isinstance(event, Allocation) for event in events):
        raise RuntimeError(f"torch {torch.__version__}: its profiler reports no CPU memory events")
    return replay(events)


@dataclass(frozen=True, slots=True)
class Allocation:
    """An event of the CPU allocator: an address gained `size_bytes`, or lost them where that is negative."""

    address: int
    size_bytes: int


class MemoryMark:
    """A mark between two events."""


def replay(events: Iterable[Allocation | MemoryMark]) -> CpuPeak:
    """The peaks of a stream of events in order of time.

    The profiler's own running total is of no use: it counts on from earlier passes whose tensors were freed while no
    profiler looked. Here a free counts only where its allocation was seen, and an address that is allocated again
    without having been freed was freed unseen.
    """
    live: dict[int, int] = {}
    held = total = 0
    phases: list[int] = []
    for event in events:
        if isinstance(event, MemoryMark):
            phases.append(held)
            continue
        held -= live.pop(event.address, 0)
        if event.size_bytes > 0:
            live[event.address] = event.size_bytes
            held += event.size_bytes
        total = max(total, held)
        if phases:
            phases[-1] = max(phases[-1], held)
    return CpuPeak(total, tuple(phases), held)


def _cpu_events(profiled: Any) -> Iterator[Allocation | MemoryMark]:
    """The CPU allocator's events and the marks, in order of time, from the profiler's tree of raw events.

    The tree has the addresses that the flat list of `[memory]` events lacks; `torch.profiler._memory_profiler` reads
    the same one. It is walked without recursion, as deep models nest deeper than Python's stack.
    """
    roots: Sequence[Any] = profiled.kineto_results.experimental_event_tree()
    timed: list[tuple[int, Allocation | MemoryMark]] = []
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if node.name == _MARK:
            timed.append((node.start_time_ns, MemoryMark()))
        elif node.tag.name == "Allocation" and node.extra_fields.device.type == "cpu":
            timed.append((node.start_time_ns, Allocation(node.extra_fields.ptr, node.extra_fields.alloc_size)))
    timed.sort(key=lambda each: each[0])
    for _, event in timed:
        yield event
