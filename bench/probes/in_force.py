"""What of a run's precision and switches is in force: read back from torch, the device and the environment.

Setting a switch is not yet having it: a variable overrules it, a card lacks the arithmetic, a compiler is turned off.
A run says so in `not_in_force`, and is flagged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from bench.probes.backends import backend
from bench.records import Case, Precision, Protocol
from bench.records.variables import allocator_variables
from bench.units import exact_bytes

if TYPE_CHECKING:
    from bench.workload import Workload

PRECISION_FLAG = "precision_not_in_force"
SWITCH_FLAG = "switch_not_in_force"


@dataclass(frozen=True, slots=True)
class InForce:
    """What a run computed with.

    Attributes:
        precision: Of matrix products and convolutions; `bf16, emulated` where each operation is rounded from float32.
            None is unknown.
        faults: What was requested and is not in force, and why, each with its flag.
        allocator: The settings of torch's allocator, read back; None where the case names none.
    """

    precision: str | None
    faults: tuple[tuple[str, str], ...] = ()
    allocator: str | None = None

    def then(self, later: InForce) -> InForce:
        """What this reading and a later one of the same run say together."""
        same = self.precision == later.precision
        return InForce(
            self.precision if same else None, tuple(dict.fromkeys((*self.faults, *later.faults))), later.allocator
        )

    @property
    def fields(self) -> dict[str, str | None]:
        """The columns of a `Measurement`."""
        return {
            "precision_in_force": self.precision,
            "allocator_in_force": self.allocator,
            "not_in_force": "; ".join(why for _, why in self.faults) or None,
        }

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags, each once."""
        return tuple(dict.fromkeys(flag for flag, _ in self.faults))


def read_in_force(case: Case, protocol: Protocol, workload: Workload, compiled_graphs: int | None = None) -> InForce:
    """Read back what the case and the protocol ask for; within `numeric_modes`, after the warm-up.

    Args:
        case: Its precision and memory format.
        protocol: Its switches.
        workload: What is stepped.
        compiled_graphs: How many graphs torch.compile has made in this process; read where None.
    """
    kind = workload.device.type
    found = precision_on(kind, case.precision, os.environ)
    faults = [(PRECISION_FLAG, f"{case.precision}: {why}") for why in (found[1], _autocast(workload)) if why]
    faults += [(SWITCH_FLAG, why) for why in _switches(case, protocol, workload, compiled_graphs)]
    faults += [(SWITCH_FLAG, f"device_memory: {why}") for why in _unlimited(kind, protocol.device_memory_bytes)]
    allocator = None if case.allocator == "default" else _allocator()
    if case.allocator != "default" and allocator != (wanted := allocator_variables(case.allocator, {})[_READ_BACK]):
        faults.append((SWITCH_FLAG, f"allocator: {wanted} was asked for, but torch has {allocator or 'none'}"))
    elif case.allocator == "expandable" and not _has_expandable_segments():
        faults.append((SWITCH_FLAG, "allocator: this torch keeps no expandable segments on ROCm"))
    return InForce(found[0], tuple(faults), allocator)


_READ_BACK = "PYTORCH_CUDA_ALLOC_CONF"


def _allocator() -> str | None:
    """What torch says that its allocator was set to, whichever variable it read."""
    import torch

    text = torch.cuda.memory._snapshot()["allocator_settings"][_READ_BACK]
    return text or None


def _has_expandable_segments() -> bool:
    """Whether any segment is one; torch for ROCm takes the setting where it does not have them, with a warning."""
    import torch

    if torch.version.hip is None:
        return True
    return any(segment.get("is_expandable") for segment in torch.cuda.memory._snapshot()["segments"])


def precision_on(kind: str, precision: Precision, variables: Mapping[str, str]) -> tuple[str | None, str | None]:
    """What the current device of a kind computes in, and why that is not what was requested."""
    return backend(kind).precision(precision, variables) or _rounded(kind, precision)


def _rounded(kind: str, precision: Precision) -> tuple[str | None, str | None]:
    """What torch's switches have float32 products compute in, and how that is not what `numeric_modes` has set."""
    from bench.workload.rounding import asked_of, read_rounding

    found, asked = read_rounding().on(kind), asked_of(precision).on(kind)
    changed = [f"{found[name]} in {name}" for name in found if found[name] != asked[name]]
    if not changed:
        return precision, None
    names = {_ROUNDED_TO[value] for value in found.values()}
    said = f"code of the model or of a library set {', '.join(changed)} (torch.backends.*.fp32_precision or allow_tf32)"
    return (names.pop() if len(names) == 1 else None), said


_ROUNDED_TO = {"ieee": "float32", "tf32": "tf32", "bf16": "bf16"}
"""The precision of a run by torch's name for what float32 products are rounded to."""


def _autocast(workload: Workload) -> str | None:
    """Why autocast is not in force although the precision asks for it: torch turns it off with a warning."""
    import torch

    if workload.autocast_type is None:
        return None
    with workload.autocast():
        if torch.is_autocast_enabled(workload.device.type):
            return None
    return f"torch has no autocast to {workload.autocast_type} on this device"


def _switches(case: Case, protocol: Protocol, workload: Workload, graphs: int | None) -> Iterator[str]:
    import torch

    if torch.are_deterministic_algorithms_enabled() != protocol.deterministic:
        yield f"deterministic: torch reports {torch.are_deterministic_algorithms_enabled()}"
    elif protocol.deterministic and torch.is_deterministic_algorithms_warn_only_enabled():
        yield "deterministic: torch only warns of operators that are not"
    cudnn = cast(Any, torch.backends.cudnn)
    if workload.device.type == "cuda" and (cudnn.benchmark, cudnn.deterministic) != (
        protocol.cudnn_benchmark,
        protocol.deterministic,
    ):
        yield f"cuDNN: torch reports benchmark {cudnn.benchmark} and deterministic {cudnn.deterministic}"
    if workload.device.type == "cuda" and protocol.cudnn_benchmark and not (cudnn.is_available() and cudnn.enabled):
        yield "cudnn_benchmark: torch does not use cuDNN"
    if protocol.threads is not None:
        limit = os.environ.get("OMP_THREAD_LIMIT", "")
        used = min(torch.get_num_threads(), int(limit) if limit.isdecimal() and int(limit) else protocol.threads)
        if used != protocol.threads:
            yield f"threads: {protocol.threads} requested, but torch uses {used}"
    if (protocol.compiled or case.compile != "false") and not (_compiled_graphs() if graphs is None else graphs):
        names = [name for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE") if os.environ.get(name)]
        yield f"compiled: torch.compile produced no graph{f' ({names[0]} is set)' if names else ''}"
    if case.memory_format == "channels_last":
        images = [each for each in workload.model.parameters() if each.dim() == 4]
        if not all(each.is_contiguous(memory_format=torch.channels_last) for each in images):
            yield "channels_last: some of the model's weights have another layout"


def _unlimited(kind: str, limit_bytes: int | None) -> Iterator[str]:
    """Why torch does not keep to the memory of a smaller card, if one is played and torch can tell."""
    memory = None if limit_bytes is None else backend(kind).memory()
    if limit_bytes is None or memory is None:
        return
    if memory.peaks()["peak_allocated_bytes"] is None:
        yield "torch's allocator has no cache and keeps to no limit"
    elif (allowed := memory.read_allowed()) is not None and allowed > limit_bytes:
        yield f"{exact_bytes(limit_bytes)} requested, but torch allows {exact_bytes(allowed)}"


def _compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"].get("unique_graphs", 0))
