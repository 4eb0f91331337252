"""What a device file may say: the `Device` type, and the strict reading and writing of its TOML form.

A file is flat: one key a value, named as the fields of `Device` with their units, and a table `[sources]` that says for
each of them where it comes from, with the derivation where it is derived. A value that is not known is left out; there
is no 0 that stands for unknown. `gpu_name`, `aliases`, `kind` and `vendor` say which device it is and need no source.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bench.errors import ConfigError, nearest, nearest_sentence

VENDORS = {"nvidia": "cuda", "amd": "cuda", "intel": "xpu", "apple": "mps"}
"""Makers of GPUs, each with the type that torch gives its devices; ROCm goes by `cuda`."""
KINDS = ("cuda", "xpu", "mps", "cpu")
PRECISIONS = ("float32", "tf32", "bf16", "fp16")
SOURCES = "sources"
UNSOURCED = ("gpu_name", "aliases", "kind", "vendor", "gpu_uuid_hash")
"""Keys that need no source, because they are what the device is called."""
CALIBRATED = "calibrated_"
"""Prefix of the keys that `bench calibrate` fitted to measured steps."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device as its file describes it; every figure is a rated one unless its source says measured.

    Attributes:
        name: What the command line calls it: the file's name without `.toml`.
        gpu_name: The full name as NVML and torch print it.
        kind: The type that torch gives it, one of `KINDS`.
        vendor: One of `VENDORS`; None for a CPU. A file without it means the one that kind and name tell.
        aliases: Other names that drivers print for the same device.
        memory_bytes: What CUDA, HIP or SYCL reports as total, `torch.cuda.get_device_properties(0).total_memory`: what
            torch can fill, context included. Drivers differ by a percent or two. Absent where the GPU takes whatever
            memory its host has.
        nvml_memory_bytes: What NVML and `nvidia-smi` report as total; larger, as it holds what the driver keeps.
        memory_bandwidth_bytes_per_s: Of the device memory, rated.
        memory_ecc_frac: Share of that bandwidth that is left where ECC is on by default and stored beside the data, as
            on boards with GDDR for data centres; HBM has bits of its own for it.
        memory_bus_bits: Width of the memory bus.
        memory_clock_hz: As CUDA reports it; data moves twice per cycle.
        l2_bytes: As CUDA reports it.
        multiprocessors: Those that are enabled: AMD's compute units, Intel's Xe-cores, the cores of Apple's GPUs.
        fp32_cores_per_multiprocessor: Each does one float32 multiply-add per cycle.
        max_threads_per_multiprocessor: Resident at once.
        compute_capability: Major and minor of CUDA; HIP's two numbers mean something else, and stay out.
        boost_clock_hz: The rated boost clock; cards of other makers than NVIDIA differ.
        peak_float32_flop_per_s: Without tensor cores; on AMD with matrix cores, which compute in float32 too.
        peak_tf32_flop_per_s: Tensor cores, dense.
        peak_bf16_flop_per_s: Tensor cores, dense, accumulating in float32.
        peak_fp16_flop_per_s: Tensor cores, dense, accumulating in float32 as torch does; GeForce does half as many
            so as when accumulating in fp16. Without tensor cores (before Volta), that of float32.
        power_limit_w: The default limit.
        cublas_workspace_bytes: What torch allocates a cuBLAS handle and stream.
        context_bytes: CUDA context and loaded modules; absent until measured.
        context_low_bytes: The least that was seen of it over several workloads.
        context_high_bytes: The most that was seen of it.
        launch_overhead_s: Of one kernel; absent until measured.
        gpu_uuid_hash: Of the one GPU that was calibrated, as results have it.
        reachable_bandwidth_bytes_per_s: What a large copy reaches; measured. So are the others that are reachable.
        reachable_float32_flop_per_s: What large products reach.
        reachable_tf32_flop_per_s: Likewise.
        reachable_bf16_flop_per_s: Likewise.
        reachable_fp16_flop_per_s: Likewise.
        host_dispatch_s: Of the host to ask for one small operator, outside of a training step; measured.
        calibrated_bandwidth_bytes_per_s: What the roofline reckons with in place of the rated figure, so that its
            estimates agree with measured steps; `sources` has how well they do. So are the others that are calibrated.
        calibrated_float32_flop_per_s: In place of the peak.
        calibrated_tf32_flop_per_s: Likewise.
        calibrated_bf16_flop_per_s: Likewise.
        calibrated_fp16_flop_per_s: Likewise.
        calibrated_dispatch_s: Of the host for each kernel of a training step.
        sources: For each key above that is known, where it comes from.
    """

    name: str
    gpu_name: str
    kind: str
    vendor: str | None = None
    aliases: tuple[str, ...] = ()
    memory_bytes: int | None = None
    nvml_memory_bytes: int | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    memory_ecc_frac: float | None = None
    memory_bus_bits: int | None = None
    memory_clock_hz: float | None = None
    l2_bytes: int | None = None
    multiprocessors: int | None = None
    fp32_cores_per_multiprocessor: int | None = None
    max_threads_per_multiprocessor: int | None = None
    compute_capability: tuple[int, int] | None = None
    boost_clock_hz: float | None = None
    peak_float32_flop_per_s: float | None = None
    peak_tf32_flop_per_s: float | None = None
    peak_bf16_flop_per_s: float | None = None
    peak_fp16_flop_per_s: float | None = None
    power_limit_w: float | None = None
    cublas_workspace_bytes: int | None = None
    context_bytes: int | None = None
    context_low_bytes: int | None = None
    context_high_bytes: int | None = None
    launch_overhead_s: float | None = None
    gpu_uuid_hash: str | None = None
    reachable_bandwidth_bytes_per_s: float | None = None
    reachable_float32_flop_per_s: float | None = None
    reachable_tf32_flop_per_s: float | None = None
    reachable_bf16_flop_per_s: float | None = None
    reachable_fp16_flop_per_s: float | None = None
    host_dispatch_s: float | None = None
    calibrated_bandwidth_bytes_per_s: float | None = None
    calibrated_float32_flop_per_s: float | None = None
    calibrated_tf32_flop_per_s: float | None = None
    calibrated_bf16_flop_per_s: float | None = None
    calibrated_fp16_flop_per_s: float | None = None
    calibrated_dispatch_s: float | None = None
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Take the vendor from kind and name where it is not given."""
        if self.vendor is None and self.kind != "cpu":
            object.__setattr__(self, "vendor", _vendor_of(self.kind, self.gpu_name))

    def __str__(self) -> str:
        """What the command line calls it."""
        return self.name

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU, of whatever vendor."""
        return self.kind != "cpu"

    def peak_flop_per_s(self, precision: str) -> float | None:
        """The peak rate in FLOP/s at `precision`, one of `PRECISIONS`; None if unknown or where the chip has none.

        Raises:
            ValueError: `precision` is none of `PRECISIONS`.
        """
        if precision not in PRECISIONS:
            raise ValueError(f'unknown precision "{precision}". Allowed: {", ".join(PRECISIONS)}')
        peak: float | None = getattr(self, f"peak_{precision}_flop_per_s")
        return peak

    @property
    def calibration(self) -> str | None:
        """What the calibrated values rest on, as their source says; None if the device is not calibrated."""
        return next((text for key, text in self.sources if key.startswith(CALIBRATED)), None)

    def source(self, key: str) -> str | None:
        """Where the value of `key` comes from; None if it has no value."""
        return dict(self.sources).get(key)


_Check = Callable[[object], Any]


def _vendor_of(kind: str, gpu_name: str) -> str:
    """The vendor of a GPU by what torch says of it: ROCm's devices are `cuda` as well, and their names tell."""
    if kind == "cuda":
        return "amd" if re.search(r"\b(amd|radeon|instinct)\b", gpu_name, re.IGNORECASE) else "nvidia"
    return next(vendor for vendor, own in VENDORS.items() if own == kind)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a non-empty text")
    return value


def _one_of(names: Collection[str]) -> _Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValueError("a list of strings")
    return tuple(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 63:
        raise ValueError("a whole number above 0")
    return value


def _rate(value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _LARGEST:  # type: ignore[operator]  # a number, as the line above says
        raise ValueError("a number above 0")
    return float(value)  # type: ignore[arg-type]


def _capability(value: object) -> tuple[int, int]:
    whole = isinstance(value, (list, tuple)) and all(type(part) is int and part >= 0 for part in value)
    if not isinstance(value, (list, tuple)) or not whole or len(value) != 2:
        raise ValueError("two whole numbers like [9, 0]")
    return value[0], value[1]


_LARGEST = 1e30
"""Of rates: far above any, and what is computed from them stays finite."""

_SPECIAL: dict[str, _Check] = {
    "gpu_name": _text,
    "kind": _one_of(KINDS),
    "vendor": _one_of(VENDORS),
    "aliases": _texts,
    "compute_capability": _capability,
    "gpu_uuid_hash": _text,
}
_RATE_ENDINGS = ("_per_s", "_hz", "_w", "_s", "_frac")


def _check_of(key: str) -> _Check:
    """The check of a key, which its unit decides: rates, clocks, watts, seconds, shares are floats, others counts."""
    return _SPECIAL.get(key) or (_rate if key.endswith(_RATE_ENDINGS) else _count)


CHECKS: dict[str, _Check] = {f.name: _check_of(f.name) for f in fields(Device) if f.name not in ("name", SOURCES)}
"""Every key that a device file may have, in the order in which files are written, with its check."""


def device_from_mapping(name: str, content: Mapping[str, object], where: str) -> Device:
    """Build a device from the parsed content of its file.

    Args:
        name: The name it shall go by.
        content: Keys and values, `sources` among them.
        where: The file, for the messages.

    Raises:
        ConfigError: With every fault of the content at once.
    """
    faults = [f"{key}: missing" for key in ("gpu_name", "kind") if key not in content]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key == SOURCES:
            continue
        if key not in CHECKS:
            faults.append(f"{key}: unknown key. {nearest_sentence(nearest(key, CHECKS))}".rstrip())
            continue
        try:
            values[key] = CHECKS[key](value)
        except ValueError as error:
            faults.append(f"{key}: must be {error}, not {_shown(value)}")
    sources, source_faults = _read_sources(content)
    faults += _spread_faults(values) + _vendor_faults(values)
    if faults or source_faults:
        raise ConfigError([f"{where}: {fault}" for fault in faults + source_faults])
    return Device(name=name, sources=sources, **values)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print numbers of thousands of digits
        return "a number has thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _spread_faults(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the interval of the context: both ends or none, around the figure itself."""
    given = [key for key in ("context_low_bytes", "context_high_bytes") if key in values]
    if not given:
        return []
    ends = [values[key] for key in ("context_low_bytes", "context_bytes", "context_high_bytes") if key in values]
    if len(ends) < 3:
        return [f"{given[0]}: needs context_bytes and both ends of its interval"]
    return [] if ends == sorted(ends) else [f"{given[0]}: context_bytes must be between its low and high end"]


def _vendor_faults(values: Mapping[str, Any]) -> list[str]:
    """What is wrong where torch has the vendor's devices by another type, or the device is a CPU."""
    vendor, kind = values.get("vendor"), values.get("kind")
    if vendor is None or kind is None or VENDORS[vendor] == kind:
        return []
    return [f"vendor: devices of {vendor} have kind {VENDORS[vendor]}, not {kind}"]


def _read_sources(content: Mapping[str, object]) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """The sources in the order of `CHECKS`, and what is wrong with them."""
    table = content.get(SOURCES, {})
    if not isinstance(table, Mapping):
        return (), [f"{SOURCES}: must be a table, not {_shown(table)}"]
    faults = []
    for key in content:
        if key in CHECKS and key not in UNSOURCED and key not in table:
            faults.append(f"{key}: has no source. State it under [{SOURCES}]")
    for key, text in table.items():
        if key not in content or key not in CHECKS:
            faults.append(f"{SOURCES}.{key}: there is no such value in the file")
        elif not isinstance(text, str) or not text.strip():
            faults.append(f"{SOURCES}.{key}: must be a non-empty text, not {_shown(text)}")
    return tuple((key, str(table[key])) for key in CHECKS if key in table), faults


def parse_device_toml(name: str, text: str, where: str) -> Device:
    """Read a device file's text.

    Raises:
        ConfigError: The text is not valid TOML, or says what a device file may not; every fault is reported at once.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{where}: not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{where}: not valid TOML: nested too deeply"]) from error
    except ValueError as error:  # Python refuses to read such numbers
        raise ConfigError([f"{where}: not valid TOML: a number has thousands of digits"]) from error
    return device_from_mapping(name, content, where)


def render_device_toml(values: Mapping[str, object], sources: Mapping[str, str], comments: Sequence[str] = ()) -> str:
    """Write a device file that `parse_device_toml` reads back to the same values.

    Args:
        values: Keys of `Device` but for `name` and `sources`; a value of None is unknown and left out.
        sources: For each value, where it comes from.
        comments: Lines for the head of the file, without `#`.

    Raises:
        ConfigError: The values or sources would make a file that cannot be read.
    """
    known = {key: value for key, value in values.items() if value is not None}
    device_from_mapping("rendered", {**known, SOURCES: dict(sources)}, "device file")
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines() or [""]]
    lines += [f"{key} = {_render_value(known[key])}" for key in CHECKS if key in known]
    lines += ["", f"[{SOURCES}]"] + [f"{key} = {_render_value(sources[key])}" for key in CHECKS if key in sources]
    return "\n".join(lines) + "\n"


def device_toml(device: Device) -> str:
    """The file that would describe the device, but for its name."""
    values = {key: getattr(device, key) for key in CHECKS}
    known = {key: value for key, value in values.items() if value not in (None, ())}
    return render_device_toml(known, dict(device.sources))


def _render_value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_render_value, value))}]"
    if isinstance(value, float):
        return _render_float(value)
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def _render_float(value: float) -> str:
    """The shortest text that reads back as `value`, with an exponent for large and small ones: `1.98e9`."""
    if 1e-3 <= value < 1e6:
        return repr(value)
    for digits in range(17):
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
        if float(text) == value:
            return text
    return repr(value)
