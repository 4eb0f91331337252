"""What the estimators say of a case."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

FORMULA_PARTS = ("parameters", "gradients", "optimizer_state", "batch", "activations")
"""What the formula adds up: its columns `formula_<part>_bytes`."""

TRACE_PARTS = (*FORMULA_PARTS, "temporaries", "workspaces", "rounding")
"""What the trace's peak of `allocated` is made of: its columns `trace_<part>_bytes`."""

_LEFT_OUT_OF_ALL = {"compiled": "compiled is on, but torch.compile is not modelled"}
_LEFT_OUT_OF_THE_TRACE = {
    "cudnn_benchmark": "cudnn_benchmark is on, but the memory and choices of cuDNN's trials are not modelled",
    "deterministic": "deterministic is on, but the kernels and cuBLAS workspaces that it changes are not modelled",
}
UNMODELLED = (*_LEFT_OUT_OF_ALL, *_LEFT_OUT_OF_THE_TRACE)
"""The switches of a `Protocol` that change what a step takes, and that no estimator follows."""


def left_out(switches: Collection[str], *, traced: bool) -> list[str]:
    """What estimates leave out of runs with these `switches` on, in words for `estimate_note`.

    Args:
        switches: Names of `UNMODELLED`.
        traced: Whether the trace speaks: the formula knows no kernels, whichever they are.
    """
    known = _LEFT_OUT_OF_ALL | (_LEFT_OUT_OF_THE_TRACE if traced else {})
    return [words for switch, words in known.items() if switch in switches]


def join_notes(*notes: str | None) -> str | None:
    """Notes as one, each once; None if there is none."""
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the estimators say of one case on one device, without having executed it there."""

    case_key: str
    estimate_device: str  # a device file's name, or cpu
    estimate_note: str | None = None  # why an estimator gave none, or what it leaves out here
    formula_bytes: int | None = None
    formula_parameters_bytes: int | None = None
    formula_gradients_bytes: int | None = None
    formula_optimizer_state_bytes: int | None = None
    formula_batch_bytes: int | None = None
    formula_activations_bytes: int | None = None
    trace_peak_allocated_bytes: int | None = None
    trace_peak_reserved_bytes: int | None = None
    trace_peak_requested_bytes: int | None = None
    trace_parameters_bytes: int | None = None
    trace_gradients_bytes: int | None = None
    trace_optimizer_state_bytes: int | None = None
    trace_batch_bytes: int | None = None
    trace_activations_bytes: int | None = None
    trace_temporaries_bytes: int | None = None
    trace_workspaces_bytes: int | None = None
    trace_rounding_bytes: int | None = None
    estimated_device_bytes: int | None = None  # reserved, context and loaded modules: what nvidia-smi will show
    estimated_device_low_bytes: int | None = None  # with the least that the context may be; null: spread unknown
    estimated_device_high_bytes: int | None = None  # with the most that it may be
    estimated_device_basis: str | None = None  # where the context's figure comes from, in words
    estimated_fit: str | None = None  # fits, may not fit, does not fit; null if the device's memory is unknown
    estimated_step_time_s: float | None = None
    estimated_samples_per_s: float | None = None
    estimated_speed_basis: str | None = None  # how the time was estimated and how far off that was known to be
