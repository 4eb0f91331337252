"""Two virtual tables of torch's C++ that are answered from here: the device guard and the hooks of CUDA.

Both are interfaces that libtorch asks about CUDA: which device is current, how many there are, whether a context
exists, whether cuDNN is there. A copy of the table is made, a few entries are replaced, and the object or registry is
pointed at the copy. The order of entries is read from the headers that torch ships with every wheel, and tried before
use.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

CUDA, META = 1, 14
"""c10/core/DeviceType.h."""

_REGISTRY_SLOTS = 21
_ASK = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
_ASK_REAL = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)
_ROOT = Path(torch.__file__).parent
_KEPT: list[Any] = []
"""Tables that were ever in use: torch may hold on to one, so they are never freed."""

CUDNN_VERSION = 91000
"""What builds without cuDNN are made to report; batch norm asks for 5110 (aten/src/ATen/native/Normalization.cpp)."""


def _virtuals(header: str) -> list[str]:
    """Names of the virtual functions that a header declares, in order; a destructor takes two entries."""
    text = (_ROOT / "include" / header).read_text(encoding="utf-8")
    names: list[str] = []
    for match in re.finditer(r"^  virtual\s+(?:(~)\w+|[^(;]*?(\w+))\s*\(", text, re.MULTILINE):
        names += ["~", "~~"] if match[1] else [match[2]]
    return names


def _table(address: int, length: int) -> Any:
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0]
    return (ctypes.c_void_p * length).from_address(pointer or 0)


def _replaced(table: Any, names: list[str], answers: Mapping[str, Any]) -> Any:
    copy = (ctypes.c_void_p * len(table))(*table)
    for name, answer in answers.items():
        if name in names:
            copy[names.index(name)] = ctypes.cast(answer, ctypes.c_void_p)
    _KEPT.append((copy, dict(answers)))
    return copy


_RETURN_STREAM = {
    "x86_64": bytes.fromhex("b801000000 31d2 c3"),  # mov eax, 1; xor edx, edx; ret
    "aarch64": bytes.fromhex("20008052 010080d2 c0035fd6"),  # mov w0, 1; mov x1, 0; ret
}


def _default_stream() -> Any:
    """A function that returns the default stream of `cuda:0`, which takes two registers: more than ctypes returns.

    Raises:
        OSError: The machine's processor is another, or memory cannot be made executable.
    """
    code = _RETURN_STREAM.get(platform.machine())
    if code is None:
        raise OSError(f"{platform.machine()} processors are not supported")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    _KEPT.append(page)
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))


def _constant(value: int) -> Any:
    return _ASK(lambda _: value)


def _ask(table: Any, names: list[str], name: str, address: int) -> int:
    return int(_ASK(table[names.index(name)])(address))


def device_guards() -> Any:
    """The registry of device guards (c10/core/impl/DeviceGuardImplInterface.h).

    Raises:
        OSError: libc10 is not where it is expected.
        ValueError: It has no such registry.
    """
    library = ctypes.CDLL(str(_ROOT / "lib" / "libc10.so"))
    return (ctypes.c_void_p * _REGISTRY_SLOTS).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")


def _idle_guard(guards: Any) -> Any:
    """A guard that does nothing, like Meta's, but says that the current device is `cuda:0`, with one stream.

    Raises:
        ValueError: The guards do not answer as expected.
    """
    names = _virtuals("c10/core/impl/DeviceGuardImplInterface.h")
    meta = guards[META]
    if (
        names[:3] != ["type", "exchangeDevice", "getDevice"]
        or not {"deviceCount", "getStream"} <= set(names)
        or not meta
    ):
        raise ValueError("the device guards have an unknown layout")
    table = _table(meta, len(names))
    if _ask(table, names, "type", meta) & 0xFF != META:
        raise ValueError("the device guards have an unknown layout")
    if (
        _ask(table, names, "getDevice", meta) & 0xFFFF != 0xFF00 | META
        or _ask(table, names, "deviceCount", meta) & 0xFF != 1
    ):
        raise ValueError("the device guards have an unknown layout")
    copy = _replaced(table, names, {"getDevice": _constant(CUDA), "getStream": _default_stream()})
    guard = (ctypes.c_void_p * 2)(ctypes.addressof(copy), 0)
    _KEPT.append(guard)
    return guard


@contextlib.contextmanager
def idle_guard() -> Iterator[None]:
    """While entered, CUDA's device guard does nothing."""
    guards = device_guards()
    before = guards[CUDA]
    guards[CUDA] = ctypes.addressof(_idle_guard(guards))
    try:
        yield
    finally:
        guards[CUDA] = before


def _hooks() -> tuple[int, list[str]]:
    """Address of CUDA's hooks and the names in their table (aten/src/ATen/detail/CUDAHooksInterface.h)."""
    library = ctypes.CDLL(str(_ROOT / "lib" / "libtorch_cpu.so"))
    get = library["_ZN2at6detail12getCUDAHooksEv"]
    get.restype = ctypes.c_void_p
    names = _virtuals("ATen/detail/AcceleratorHooksInterface.h")
    names += [name for name in _virtuals("ATen/detail/CUDAHooksInterface.h") if name not in names]
    return int(get()), names


def check_hooks() -> None:
    """Ask the hooks a few questions whose answers are known.

    Raises:
        ValueError: They are not where they are expected.
        OSError: The library cannot be opened.
        AttributeError: It lacks the function.
    """
    address, names = _hooks()
    table = _table(address, len(names))
    built = int(torch.version.cuda is not None)
    for name, expected in (
        ("hasCUDART", built),
        ("hasROCM", 0),
        ("compiledWithMIOpen", 0),
        ("compiledWithCuDNN", built),
    ):
        if name not in names or _ask(table, names, name, address) & 0xFF != expected:
            raise ValueError("the hooks of CUDA have an unknown layout")


@contextlib.contextmanager
def cuda_present() -> Iterator[None]:
    """While entered, libtorch believes that CUDA and cuDNN are there and that no context was made."""
    address, names = _hooks()
    object_ = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
    before = object_[0]
    yes, no = _constant(1), _constant(0)
    answers = {
        "isBuilt": yes,
        "isAvailable": yes,
        "hasCUDA": yes,
        "hasPrimaryContext": no,
        "init": no,
        "current_device": no,
    }
    if torch.version.cuda is None:
        answers |= {"hasCuDNN": yes, "compiledWithCuDNN": yes, "supportsDilatedConvolutionWithCuDNN": yes}
        answers |= {"versionCuDNN": _constant(CUDNN_VERSION), "versionRuntimeCuDNN": _constant(CUDNN_VERSION)}
        answers |= {"batchnormMinEpsilonCuDNN": _ASK_REAL(lambda _: 0.0)}
    object_[0] = ctypes.addressof(_replaced(_table(address, len(names)), names, answers))
    try:
        yield
    finally:
        object_[0] = before
