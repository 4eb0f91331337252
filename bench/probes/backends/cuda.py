"""NVIDIA GPUs: `torch.cuda`, and NVML for what the driver knows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bench.errors import DeviceError
from bench.probes.backends.contract import DeviceEvent, DeviceReadings, InForce
from bench.probes.cuda_mps import mps_state
from bench.probes.gpu_monitor import Readings
from bench.probes.nvml import visible_entries
from bench.probes.torch_memory import CudaMemory, memory_kind
from bench.records import Precision

_FP16_FROM = (5, 3)  # compute capability with arithmetic in fp16; CUDA C++ Programming Guide, arithmetic instructions
_TENSOR_FROM = (8, 0)  # the same, of tensor cores for TF32 and bf16


class CudaBackend:
    """See `contract.Backend`."""

    kind = "cuda"
    records_first = True

    def available(self) -> bool:
        """Torch's word. It says why it cannot, where it cannot, in a warning."""
        import torch

        return torch.cuda.is_available()

    def facts(self) -> dict[str, Any]:
        """Of every GPU, after CUDA has started."""
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]
        indices = range(torch.cuda.device_count())  # the driver's word from here on, and not NVML's
        properties = [torch.cuda.get_device_properties(index) for index in indices]
        return {
            "device_count": len(indices),
            "device_names": tuple(torch.cuda.get_device_name(index) for index in indices),
            "capabilities": tuple(torch.cuda.get_device_capability(index) for index in indices),
            "uuids": distinct_uuids(properties),
            "unified": tuple(memory_kind(each) == "unified" for each in properties),
            "mps": tuple(bool(mps_state(index)[0]) for index in indices),
            "total_bytes": tuple(each.total_memory for each in properties),
        }

    def see_only(self, gpu_uuid: str | None, gpu_index: int | None) -> None:
        """By UUID, as NVML's index and CUDA's may differ, or by place where none is known."""
        see_only(gpu_uuid, gpu_index)

    def synchronize(self) -> None:
        """As `torch.cuda.synchronize`."""
        import torch

        torch.cuda.synchronize()

    def event(self) -> DeviceEvent:
        """A CUDA event; a resolution of about 0.5 µs (CUDA Runtime API, `cudaEventElapsedTime`)."""
        import torch

        event_type: Any = torch.cuda.Event  # not annotated in every torch
        event: DeviceEvent = event_type(enable_timing=True)
        return event

    def memory(self) -> CudaMemory:
        """Torch's caching allocator."""
        return CudaMemory()

    def readings(self, gpu_uuid: str | None, error: str | None) -> DeviceReadings:
        """NVML's."""
        return Readings(gpu_uuid, error)

    def environment(self, index: int | None) -> dict[str, Any]:
        """Nothing beyond what `bench.probes.environment` reads of `torch.cuda` and NVML."""
        return {}

    def precision(self, precision: Precision, variables: Mapping[str, str]) -> InForce | None:
        """By the compute capability, and by NVIDIA's variable for TF32."""
        import torch

        major, minor = torch.cuda.get_device_capability()
        card = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16, emulated", f"{card} emulates bf16: it has no bf16 arithmetic"
        if precision == "fp16" and not self._has_fp16((major, minor)):
            return "fp16, emulated", f"{card} emulates fp16: it has no fp16 arithmetic"
        if precision in ("bf16", "fp16"):
            return precision, None
        override = variables.get("NVIDIA_TF32_OVERRIDE", "").strip()
        if not self._has_tf32():
            return "float32", f"{card} has no TF32 and computes in float32" if precision == "tf32" else None
        if override == "0":
            return "float32", "NVIDIA_TF32_OVERRIDE=0 switches TF32 off" if precision == "tf32" else None
        if precision == "float32" and override:
            return None, f"NVIDIA_TF32_OVERRIDE={override[:20]} may switch TF32 on, whatever torch asks for"
        return None

    def _has_fp16(self, capability: tuple[int, int]) -> bool:
        return capability >= _FP16_FROM

    def _has_tf32(self) -> bool:
        import torch

        supported = getattr(torch.cuda, "is_tf32_supported", None)  # torch 2.7 and newer
        return bool(supported()) if supported is not None else torch.cuda.get_device_capability() >= _TENSOR_FROM


def distinct_uuids(properties: Sequence[Any]) -> tuple[str, ...]:
    """The UUIDs, where every device has one of its own (torch 2.5 and newer)."""
    found = [str(getattr(each, "uuid", "")) for each in properties]
    return tuple(found) if all(set(uuid) - set("0-") for uuid in found) and len(set(found)) == len(found) else ()


def see_only(gpu_uuid: str | None, gpu_index: int | None) -> None:
    """Set the variables by which CUDA and ROCm show this process one GPU.

    The index counts the GPUs that the user left visible. ROCm reads `HIP_VISIBLE_DEVICES` before CUDA's name for it,
    and both count what `ROCR_VISIBLE_DEVICES` leaves.

    Raises:
        DeviceError: The variable names fewer GPUs than torch counted.
    """
    if gpu_uuid:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_uuid
    elif gpu_index:
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            given = os.environ.get(name)
            if given is None and name == "HIP_VISIBLE_DEVICES":
                continue
            visible = visible_entries(given) if given is not None else tuple(map(str, range(gpu_index + 1)))
            if gpu_index >= len(visible):
                raise DeviceError(f'cuda:{gpu_index}: {name}="{given}" names {len(visible)} GPU(s). Name it there')
            os.environ[name] = visible[gpu_index]
