"""The CPU: the host's own clock, no cache of memory, no driver to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.probes.backends.contract import InForce
from bench.probes.gpu_monitor import Readings
from bench.probes.host import cpu_flags
from bench.records import Precision

_STRICT = ("", "STRICT")  # values of oneDNN's variable for float32's own arithmetic
_FLAGS = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp", "fphp"}}
"""What /proc/cpuinfo calls instructions of a precision, on x86 and ARM."""


class CpuBackend:
    """See `contract.Backend`."""

    kind = "cpu"
    records_first = False

    def available(self) -> bool:
        """Always."""
        return True

    def facts(self) -> dict[str, Any]:
        """Nothing: `TorchFacts` are of GPUs."""
        return {}

    def see_only(self, gpu_uuid: str | None, gpu_index: int | None) -> None:
        """Nothing: there is one."""

    def synchronize(self) -> None:
        """Nothing: the host has done it."""

    def event(self) -> None:
        """The host's clock will do."""

    def memory(self) -> None:
        """Not a cache: `measure_cpu_peak` has its peak, from a pass of its own."""

    def readings(self, gpu_uuid: str | None, error: str | None) -> Readings:
        """Nothing to read."""
        return Readings(None, error)

    def environment(self, index: int | None) -> dict[str, Any]:
        """Nothing beyond the host's."""
        return {}

    def precision(self, precision: Precision, variables: Mapping[str, str]) -> InForce | None:
        """The CPU has every precision, if needed by rounding: that is disclosed, and no fault."""
        if precision in _FLAGS:
            flags = cpu_flags()
            return (precision if flags & _FLAGS[precision] else f"{precision}, emulated") if flags else None, None
        for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
            if (mode := variables.get(name, "").strip().upper()) not in _STRICT:
                return None, f"{name}={mode[:20]} lets oneDNN compute float32 in lower precision"
        return None
