"""Tensors of a device that does not exist: plain `torch.Tensor`s over addresses that nobody reads."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, Protocol

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


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_raise_if_set = ctypes.pythonapi.PyErr_Occurred  # ctypes raises the exception that is set after any call of `pythonapi`
_raise_if_set.restype = ctypes.c_void_p
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
    """Makes CUDA tensors over addresses that nobody reads, and hears of the death of each storage."""

    def __init__(self) -> None:
        """Start with no tensors."""
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self._capsule = new
        self._deleter = _DELETER(self._release)
        self._held: dict[int, Any] = {}
        self._passing: BaseException | None = None
        self.count = 0
        self.on_free: Callable[[int], None] | None = None

    def allocate(self, spec: Spec) -> torch.Tensor:
        """A new tensor; its storage's number is `count` after the call."""
        self.count += 1
        number, ndim = self.count, len(spec.shape)
        extents = (ctypes.c_int64 * (2 * ndim))(*spec.shape, *spec.strides)
        start = ctypes.addressof(extents)
        code, bits = _DL_DTYPES[spec.dtype]
        managed = _DLManagedTensor(
            _DLTensor(
                FIRST_ADDRESS + ADDRESS_STEP * number,
                _DLDevice(_KDL_CUDA, 0),
                ndim,
                _DLDataType(code, bits, 1),
                start,
                start + 8 * ndim,
                0,
            ),
            number,
            ctypes.cast(self._deleter, ctypes.c_void_p),
        )
        self._held[number] = managed, extents
        tensor: torch.Tensor = torch._C._from_dlpack(self._capsule(ctypes.addressof(managed), b"dltensor", None))
        return tensor

    @contextlib.contextmanager
    def exceptions_kept(self) -> Iterator[None]:
        """Raise what the death of a tensor makes Python forget.

        A temporary tensor may die while an exception passes. Its deleter then runs with the exception set, as ctypes
        does not put it aside, and after it the interpreter raises a SystemError: a function failed without one.
        """
        try:
            yield
        except SystemError:
            if self._passing is not None:
                raise self._passing from None
            raise

    def _release(self, managed: int) -> None:
        try:
            _raise_if_set()
        except SystemError as error:
            self._passing = self._passing or error  # not the complaint about one that is held already
        except BaseException as error:  # noqa: BLE001 - whatever passes
            self._passing = error
        number = _DLManagedTensor.from_address(managed).context
        del self._held[number]
        if self.on_free is not None:
            self.on_free(number)


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


def block_of(tensor: torch.Tensor) -> int:
    """The number of the storage of a tensor that `Memory` made."""
    return (tensor.untyped_storage().data_ptr() - FIRST_ADDRESS) // ADDRESS_STEP
