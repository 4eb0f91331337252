"""What of the environment decides how much memory a step takes: read once, in one place, as torch reads it.

`read_settings` is pure and free of torch: each version's documented order of the allocator's variables, and cuBLAS's
variables. `settings_in_force` asks the torch of this process for what it took, which is the truth where torch has an
allocator for GPUs at all (a build for the CPU has none), and needs no GPU and starts no CUDA.

Left out: variables that move work elsewhere (`CUDNN_...`, `TORCH_CUDNN_...`), and what torch's Python interface sets.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

from bench.devices import Device
from bench.devices.context import Context, context_of
from bench.errors import ConfigError, Unsupported
from bench.estimators.allocator import AllocatorConfig, parse_allocator_config, rounds_fraction, tie_rule
from bench.estimators.temporaries.machine import MIB, BlasSettings
from bench.records.variables import allocator_variables

Verdict = Literal["fits", "may not fit", "does not fit"]


class DeviceFields(TypedDict):
    """The fields of `Estimate` that speak of the device as a whole."""

    estimated_device_bytes: int
    estimated_device_low_bytes: int | None
    estimated_device_high_bytes: int | None
    estimated_device_basis: str


def device_interval(reserved_bytes: int, device: Device) -> DeviceFields:
    """What `nvidia-smi` will show of a process, in bytes, with the ends between which the context puts it.

    Args:
        reserved_bytes: Torch's peak, as estimated; an error of that estimate is not in the interval.
        device: A GPU. Where its file states no context, that of other GPUs is taken, and the basis says so.

    Returns:
        The ends are None if the file states a context and not its spread.

    Raises:
        ValueError: The device is not a GPU.
    """
    context = context_of(device)
    return {
        "estimated_device_bytes": reserved_bytes + context.point_bytes,
        "estimated_device_low_bytes": None if context.low_bytes is None else reserved_bytes + context.low_bytes,
        "estimated_device_high_bytes": None if context.high_bytes is None else reserved_bytes + context.high_bytes,
        "estimated_device_basis": context.basis,
    }


def judge_fit(fits: Callable[[int], bool], context: Context) -> Verdict:
    """Whether a step fits beside a context: `may not fit` where the ends of the context's interval disagree.

    Args:
        fits: Whether it does beside a context of so many bytes; what fits beside one fits beside a smaller one.
        context: Of the device.
    """
    if fits(context.point_bytes):
        return "fits" if context.high_bytes is None or fits(context.high_bytes) else "may not fit"
    return "may not fit" if context.low_bytes is not None and fits(context.low_bytes) else "does not fit"


_CUDA, _HIP, _ANY = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
ALLOCATOR_VARIABLES = (_CUDA, _HIP, _ANY)
_UNCACHED = ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING")
MEMORY_VARIABLES = (
    *ALLOCATOR_VARIABLES,
    *_UNCACHED,
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_BLAS_PREFER_HIPBLASLT",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
    "TORCH_CUBLAS_WORKSPACE_CACHE",
    "DISABLE_ADDMM_CUDA_LT",
    "PYTORCH_TUNABLEOP_ENABLED",
)
"""Every variable that is read here: what two estimates must share to be the same."""

_HIP_NAMES = (2, 7)
_CHECKED = (2, 7)
_KIB = 1 << 10
_SIZE_T = 1 << 64


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """Settings of torch's allocator and of cuBLAS's workspaces, as one version of torch takes them.

    Attributes:
        torch_version: As torch writes it.
        variable: The variable that holds the allocator's settings; None if none does.
        allocator: Its text; empty for torch's defaults.
        refusal: Torch's message about that text, if it rejects it.
        in_force: What torch read from the text, by field of `AllocatorConfig`; empty if torch could not be asked.
        uncached: The variable that turns the allocator's cache off; None if none does.
        tunable: Whether TunableOp tries kernels out at run time.
        blas: Of cuBLAS's workspaces.
    """

    torch_version: str
    variable: str | None = None
    allocator: str = ""
    refusal: str | None = None
    in_force: tuple[tuple[str, Any], ...] = ()
    uncached: str | None = None
    tunable: bool = False
    blas: BlasSettings = field(default_factory=BlasSettings)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor of `torch_version`."""
        return _version(self.torch_version)

    def allocator_config(
        self, device_total_bytes: int | None = None, capacity_bytes: int | None = None
    ) -> AllocatorConfig:
        """The allocator's settings on a device.

        Args:
            device_total_bytes: Its memory. Where it is unknown, a share of it is not a limit; see `unknown_total`.
            capacity_bytes: What of it is free for segments; None: without limit.

        Raises:
            ConfigError: Torch rejects the settings, or they cannot be simulated.
            Unsupported: Nothing is cached or counted under these settings, or kernels are tuned at run time.
        """
        if self.uncached:
            raise Unsupported(
                f"{self.uncached} is set: torch allocates every tensor from the driver and counts nothing, so there "
                "is no peak to estimate. Unset it"
            )
        if self.tunable:
            raise Unsupported(
                "PYTORCH_TUNABLEOP_ENABLED is set: the memory of kernels that are tuned at run time cannot be "
                "traced. Unset it"
            )
        config = self._parse(device_total_bytes, capacity_bytes)
        if self.refusal:
            raise ConfigError([f"{self.variable}: torch {self.torch_version} rejects it: {self.refusal}"])
        return replace(config, **dict(self.in_force))

    def unknown_total(self, device_name: str) -> str | None:
        """The note about a memory fraction for a device of unknown memory; None if no fraction is set."""
        try:
            share = self._parse(_SIZE_T, None).memory_fraction
        except ConfigError:  # `allocator_config` says it
            return None
        if share >= 1:
            return None
        return (
            f"{self.variable}: per_process_memory_fraction:{share:g} is ignored: the device file of {device_name} "
            "lacks memory_bytes"
        )

    def _parse(self, total: int | None, capacity: int | None) -> AllocatorConfig:
        """The parsed text; a fraction of an unknown total is ignored."""
        known = _SIZE_T if total is None else total
        base = AllocatorConfig(
            ties=tie_rule(self.torch_version),
            rounds_fraction=rounds_fraction(self.torch_version),
            device_total_bytes=known,
            capacity_bytes=capacity,
        )
        try:
            config = parse_allocator_config(
                self.allocator,
                base,
                rest_overwrites=self.version <= (2, 6),
                where=self.variable or "allocator settings",
            )
        except ConfigError as error:
            refused = [f"torch rejects it: {self.refusal}"] if self.refusal else []
            raise ConfigError(["; ".join([*error.faults, *refused])]) from error
        return config if total is not None else replace(config, memory_fraction=1.0, device_total_bytes=None)


def read_settings(variables: Mapping[str, str], torch_version: str) -> MemorySettings:
    """The settings by the documented order of a version of torch, without asking torch.

    Args:
        variables: The environment of a run; a variable that is set to nothing is set.
        torch_version: Of the torch that runs there.
    """
    version = _version(torch_version)
    variable = next((name for name in allocator_order(version) if name in variables), None)
    return MemorySettings(
        torch_version=torch_version,
        variable=variable,
        allocator=variables[variable] if variable else "",
        uncached=next((name for name in _UNCACHED if _turns_off(variables, name, version)), None),
        tunable=variables.get("PYTORCH_TUNABLEOP_ENABLED") == "1",
        blas=_read_blas(variables, version),
    )


@functools.cache
def _installed_torch() -> str:
    """Its version, which takes half a millisecond to look up."""
    return importlib.metadata.version("torch")


def settings_in_force(variables: Mapping[str, str] | None = None) -> MemorySettings:
    """The settings as the torch of this process has them in force; torch is asked for those of its allocator alone.

    Args:
        variables: The environment; that of this process where None. Torch read its own when it was first asked.
    """
    known = os.environ if variables is None else variables
    if not any(name in known for name in ALLOCATOR_VARIABLES):
        return read_settings(known, _installed_torch())
    import torch

    settings = read_settings(known, torch.__version__)
    if not (torch.version.cuda or torch.version.hip):
        return settings
    try:
        told = torch.cuda.memory._snapshot()["allocator_settings"]
    except (
        RuntimeError,
        ValueError,
    ) as error:  # torch reads its settings when it is first asked: 2.6 raises the former
        return replace(settings, refusal=str(error).strip().partition("\n")[0])
    text = told["PYTORCH_CUDA_ALLOC_CONF"]
    return replace(settings, allocator=text, variable=_holder(settings, known, text), in_force=_fields(told))


def settings_of_case(allocator: str) -> MemorySettings:
    """The settings in a run whose case names its `allocator`, read as torch documents them: torch is not asked."""
    variables = allocator_variables(allocator, os.environ)
    return replace(read_settings(variables, _installed_torch()), variable="allocator")


def allocator_order(version: tuple[int, int]) -> tuple[str, ...]:
    """The variables of the allocator in the order in which a version reads them: the first that is set counts alone.

    As seen on builds for CUDA of 2.6, 2.9 (which leaves `PYTORCH_ALLOC_CONF` unread: pytorch issue 183387), 2.11 and
    2.15. 2.10 was not seen and is taken for the newer.
    """
    return (_CUDA, _HIP, _ANY) if version >= (2, 10) else (_CUDA,)


def _holder(settings: MemorySettings, known: Mapping[str, str], text: str) -> str | None:
    """The variable that holds the text in force; the documented one where several hold the same."""
    if settings.variable is not None and known.get(settings.variable) == text:
        return settings.variable
    return next((name for name in ALLOCATOR_VARIABLES if known.get(name) == text), settings.variable if text else None)


def _fields(told: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The figures of torch's snapshot under the names of `AllocatorConfig`."""
    divisions = tuple(told["roundup_power2_divisions"].values())
    return (
        ("max_split_bytes", told["max_split_size"] if told["max_split_size"] > 0 else None),
        ("garbage_collection_threshold", told["garbage_collection_threshold"]),
        ("expandable_segments", told["expandable_segments"]),
        ("roundup_power2_divisions", divisions if any(divisions) else ()),
    )


def _read_blas(variables: Mapping[str, str], version: tuple[int, int]) -> BlasSettings:
    """Source: CublasHandlePool.cpp, aten/src/ATen/Context.h, aten/src/ATen/native/cuda/Blas.cpp."""
    lt = re.match(r"\s*[+-]?\d+", variables.get("CUBLASLT_WORKSPACE_SIZE", ""))
    prefers = ("TORCH_BLAS_PREFER_CUBLASLT", *(["TORCH_BLAS_PREFER_HIPBLASLT"] if version >= _HIP_NAMES else []))
    return BlasSettings(
        workspace_bytes=workspace_bytes(variables.get("CUBLAS_WORKSPACE_CONFIG", "")),
        lt_workspace_bytes=int(lt[0]) * _KIB if lt and abs(int(lt[0])) < 1 << 31 else MIB,
        prefers_lt=any(_switch(variables, name) is True for name in prefers),
        bias_in_lt=variables.get("DISABLE_ADDMM_CUDA_LT") != "1",
        unified=_switch(variables, "TORCH_CUBLASLT_UNIFIED_WORKSPACE"),
        cached=_switch(variables, "TORCH_CUBLAS_WORKSPACE_CACHE") if version >= (2, 14) else None,
    )


def workspace_bytes(text: str) -> int | None:
    """Bytes of a value of `CUBLAS_WORKSPACE_CONFIG`: the sum over every `:KiB:COUNT` in it; None if there is none.

    `parseChosenWorkspaceSize` in CublasHandlePool.cpp; torch then warns and takes its default.
    """
    pairs = re.findall(r":([0-9]+):([0-9]+)", text)
    return sum(int(size) * _KIB * int(count) for size, count in pairs) % _SIZE_T if pairs else None


def _turns_off(variables: Mapping[str, str], name: str, version: tuple[int, int]) -> bool:
    """Whether a variable turns the cache off: by being set at all in torch 2.6, by a 1 in newer ones.

    `forceUncachedAllocator` in CUDACachingAllocator.cpp.
    """
    return name in variables if version < _CHECKED else _switch(variables, name) is True


def _switch(variables: Mapping[str, str], name: str) -> bool | None:
    """`c10::utils::check_env`: 1 and 0 are on and off; anything else counts as not set."""
    return {"1": True, "0": False}.get(variables.get(name, ""))


def _version(torch_version: str) -> tuple[int, int]:
    major, minor = torch_version.split(".")[:2]
    return int(major), int(re.match(r"\d+", minor)[0])  # type: ignore[index]  # every version of torch has a minor one
