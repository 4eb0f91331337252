"""Tensors of a device that does not exist: plain `torch.Tensor`s over addresses that nobody reads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from bench.errors import Unsupported
from bench.estimators.recording import Output
from bench.estimators.tensors import Spec

FIRST_ADDRESS = 0x7F00_0000_0000
ADDRESS_STEP = 0x1000
_KDL_CUDA = 2


class Recorder(Protocol):
    """Who is told of what happens."""

    def called(
        self, operator: str, arguments: tuple[Any, ...], outputs: tuple[Output, ...], written: tuple[int, ...]
    ) -> None:
        """A kernel ran: its arguments with tensors as `Spec`s, its new storages, places of what it writes to."""

    def freed(self, block: int) -> None:
        """A storage died."""

    def reads(self, operator: str) -> None:
        """A number is read from the device, where there is none; raises `Unsupported` unless 0 will do."""


class _DLDevice(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_WRITE_TIME = ctypes.cast(ctypes.CDLL(None).time, ctypes.c_void_p)
_SLAB_PLACES = 4096
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_DL_DTYPES = {
    "float32": (2, 32),
    "float64": (2, 64),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "int16": (0, 16),
    "int8": (0, 8),
    "uint8": (1, 8),
    "uint64": (1, 64),
    "bool": (6, 8),
    "complex64": (5, 64),
    "complex128": (5, 128),
}
"""DLDataTypeCode and bits (dlpack.h)."""


class Memory:
    """Makes CUDA tensors over addresses that nobody reads, and notices the death of each storage.

    A dying storage calls its deleter. That is no Python: a tensor may die while an exception passes, which a callback
    would discard. The C library's `time` writes the seconds since 1970 over the address that stands first in what the
    deleter is given, so that `tell_deaths` finds the storages that died.
    """

    def __init__(self) -> None:
        """Start with no tensors."""
        self.count = 0
        self.numbers: dict[int, torch.Tensor | None] = {}
        """The live storages of one number: its value on the CPU where the program decides it, else None."""
        self.on_free: Callable[[int], None] | None = None
        self._slabs: list[_Slab] = []
        self._vacant: list[_DLManagedTensor] = []

    def allocate(self, spec: Spec) -> torch.Tensor:
        """A new tensor; its storage's number is `count` after the call."""
        self.count += 1
        if not spec.shape:
            self.numbers[self.count] = None
        if not self._vacant:
            self._slabs.append(_Slab())
            self._vacant += reversed(self._slabs[-1].places)
        ndim = len(spec.shape)
        extents = (ctypes.c_int64 * (2 * ndim))(*spec.shape, *spec.strides)  # read while the tensor is made
        start = ctypes.addressof(extents)
        code, bits = _DL_DTYPES[spec.dtype]
        managed = self._vacant.pop()
        managed.tensor = _DLTensor(
            FIRST_ADDRESS + ADDRESS_STEP * self.count,
            _DLDevice(_KDL_CUDA, 0),
            ndim,
            _DLDataType(code, bits, 1),
            start,
            start + 8 * ndim,
            0,
        )
        managed.context, managed.deleter = self.count, _WRITE_TIME
        tensor: torch.Tensor = torch._C._from_dlpack(_new_capsule(ctypes.addressof(managed), b"dltensor", None))
        return tensor

    def tell_deaths(self) -> None:
        """Call `on_free` with the number of every storage that died since the last call."""
        for slab in self._slabs:
            for place in np.flatnonzero((slab.addresses != 0) & (slab.addresses < FIRST_ADDRESS)).tolist():
                slab.addresses[place] = 0
                self._vacant.append(slab.places[place])
                self.numbers.pop(slab.places[place].context, None)
                if self.on_free is not None:
                    self.on_free(slab.places[place].context)

    def close(self) -> None:
        """Tell no more deaths; what is still alive may die later."""
        self.tell_deaths()
        self.on_free = None
        _outlived.extend(slab for slab in self._slabs if slab.addresses.any())


class _Slab:
    """Places for what deleters are given, which must not move."""

    def __init__(self) -> None:
        self.places = (_DLManagedTensor * _SLAB_PLACES)()
        words = np.frombuffer(memoryview(self.places).cast("B"), np.uint64).reshape(_SLAB_PLACES, -1)
        self.addresses = words[:, 0]


_outlived: list[_Slab] = []
"""Those of memories that are closed, with storages that are not dead yet: they write into them."""


DTYPES = {name: getattr(torch, name) for name in _DL_DTYPES}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def spec_of(tensor: torch.Tensor) -> Spec:
    """The tensor's `Spec`.

    Raises:
        Unsupported: Its type is none that the trace knows.
    """
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise Unsupported(f"the memory trace does not support tensors of {tensor.dtype}")
    return Spec(name, tuple(tensor.shape), tensor.stride())


def number_of(tensor: torch.Tensor) -> int:
    """As `block_of`, of a tensor at the start of its storage and without a handle on that; -1 of any other."""
    return -1 if tensor.storage_offset() else (tensor.data_ptr() - FIRST_ADDRESS) // ADDRESS_STEP


def block_of(tensor: torch.Tensor) -> int:
    """The number of the storage of a tensor that `Memory` made.

    Where it can be told from the tensor, the storage is not asked: once it has a Python object, autograd no longer adds
    gradients to it in place.
    """
    address = tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()
    return ((address if tensor.numel() else tensor.untyped_storage().data_ptr()) - FIRST_ADDRESS) // ADDRESS_STEP
