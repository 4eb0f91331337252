"""The plan that cuDNN's heuristics choose for a convolution on a GPU that is not present, and its workspace.

cuDNN 9.8 and newer take a description of a device (CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR) in place of a device. The order
of queries is torch's own (aten/src/ATen/native/cudnn/Conv_v8.cpp: run_single_conv, filterEngineConfigs, try_configs):
the engines that the instant heuristic names, without those that would round float32 operands down, and the first of
which a plan can be made. Numbers of descriptors, attributes and types are those of cudnn_graph.h.

Without leave to round, most of what the heuristic names is passed over, 30 of 35 engines on an H200, and it takes time
for each. With NVIDIA_TF32_OVERRIDE=0 it names the others only, in the same order: 30,000 questions on five GPUs had the
same answer either way. cuDNN reads that variable once, at a process's first question, so these convolutions are asked
about in a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import json
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.devices import Device
from bench.errors import Unsupported
from bench.forks import die_with_parent

Direction = Literal["forward", "data", "filter"]
Shape = tuple[int, ...]

LEAST_VERSION = 90800
LIBRARY = "libcudnn.so.9"
_CONVOLUTION, _ENGINE, _ENGINECFG, _HEURISTICS, _PLAN, _GRAPH, _TENSOR, _DEVICE = 1, 2, 3, 4, 5, 15, 17, 38
_OPERATIONS: dict[Direction, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "forward": (10, (700, 701, 702, 704, 703, 705)),  # alpha, beta, convolution, image, weight, result
    "filter": (11, (712, 713, 714, 716, 715, 717)),
    "data": (12, (706, 707, 708, 710, 709, 711)),
}
_TYPE_DATA, _TYPE_BOOLEAN, _TYPE_INT64, _TYPE_DOUBLE = 1, 2, 3, 5
_TYPE_MODE, _TYPE_HEURISTIC, _TYPE_NOTE, _TYPE_DESCRIPTOR, _TYPE_CHAR = 7, 8, 11, 15, 24
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}
_NOTE_TENSOR_CORE, _NOTE_ROUNDS_DOWN = 0, 1
_INSTANT, _FALLBACK = 0, 2
_CROSS_CORRELATION = 1
_MAX_NOTES = 16
_WANTED_CONFIGS = (1, 48, 128)
"""How many engines the heuristic is to name: one, then more than it has been seen to know (41), then all."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """One of the three calls that a convolution makes; shapes and strides as torch lays tensors out.

    Attributes:
        direction: The result, the gradient of the image, or that of the weight.
        dtype: Of all three tensors, as `tensors.Spec` names it.
        image: Shape `(B, C, H, W)`.
        weight: Shape `(K, C / groups, R, S)`.
        result: Shape `(B, K, P, Q)`.
        padding: A number a spatial dimension, as are stride and dilation.
        stride: See padding.
        dilation: See padding.
        channels_last: Whether all three tensors lie in channels-last order.
        tf32: Whether tensor cores may round float32 operands (`torch.backends.cudnn.allow_tf32`, on by default).
    """

    direction: Direction
    dtype: str
    image: Shape
    weight: Shape
    result: Shape
    padding: Shape
    stride: Shape
    dilation: Shape
    channels_last: bool = False
    tf32: bool = True


def describe_device(device: Device) -> str:
    """The device in the JSON that cuDNN wants. Raises Unsupported if the device's file lacks a value it needs."""
    needed = (
        "compute_capability",
        "multiprocessors",
        "max_threads_per_multiprocessor",
        "l2_bytes",
        "memory_bytes",
        "boost_clock_hz",
        "memory_clock_hz",
    )
    missing = [name for name in needed if getattr(device, name) is None]
    if missing or device.compute_capability is None:
        raise Unsupported(f"no cuDNN workspaces for {device.name}: its file lacks {', '.join(missing)}")
    major, minor = device.compute_capability
    shared = _SHARED_BYTES.get((major, minor), _SHARED_BYTES_OF_MAJOR.get(major, 101_376))
    return json.dumps(
        {
            "version": 1,
            "deviceName": device.gpu_name,
            "cudaDeviceId": 0,
            "deviceVer": 100 * major + 10 * minor,
            "driverVer": 13000,
            "multiProcessorCount": device.multiprocessors,
            "smCountOrigin": 0,
            "maxGridSize": [2**31 - 1, 65535, 65535],
            "maxBlockSize": [1024, 1024, 64],
            "regsPerBlock": 65536,
            "warpSize": 32,
            "maxSharedMemoryPerBlock": 49152,
            "maxSharedMemoryPerBlockOptin": shared,
            "oversizedSharedMemoryPerBlock": 0,
            "reservedSharedMemoryPerBlock": 1024 if major >= 8 else 0,
            "maxRegistersPerSM": 65536,
            "maxCtasPerSM": _BLOCKS.get((major, minor), 32),
            "maxThreadsPerBlock": 1024,
            "maxThreadsPerSM": device.max_threads_per_multiprocessor,
            "pciDeviceId": 0,
            "isTccDriver": 0,
            "supportCoopLaunch": 1,
            "smClockRateKHz": int((device.boost_clock_hz or 0) / 1e3),
            "memClockRateKHz": int((device.memory_clock_hz or 0) / 1e3),
            "l2CacheSize": device.l2_bytes,
            "totalGlobalMem": device.memory_bytes,
        }
    )


_SHARED_BYTES = {(7, 0): 98_304, (7, 5): 65_536, (8, 0): 166_912, (8, 6): 101_376, (8, 9): 101_376}
_SHARED_BYTES_OF_MAJOR = {9: 232_448, 10: 232_448, 12: 101_376}
_BLOCKS = {(7, 5): 16, (8, 6): 16, (8, 9): 24, (12, 0): 24}
"""CUDA C++ Programming Guide, technical specifications per compute capability (opt-in shared memory, blocks)."""


class CudnnPlans:
    """Plans for one device; each query is made once."""

    def __init__(self, device: Device) -> None:
        """Load cuDNN and describe the device to it.

        Raises:
            Unsupported: There is no cuDNN, it is older than 9.8, or it does not take the description.
        """
        self._cudnn = _library()
        text = describe_device(device).encode()
        self._device = self._create(_DEVICE)
        buffer = ctypes.create_string_buffer(text, len(text))
        if self._put(self._device, 2702, _TYPE_CHAR, buffer, len(text)) or self._finalize(self._device):
            raise Unsupported(f"no cuDNN workspaces for {device.name}: cuDNN rejects its description")
        self._known: dict[Convolution, int | None] = {}
        self._fork: _CudnnFork | None = None

    def workspace_bytes(self, convolution: Convolution) -> int | None:
        """Bytes of the plan that torch would run; None where cuDNN has no plan for it.

        Raises:
            Unsupported: cuDNN crashed.
        """
        self.learn([convolution])
        return self._known[convolution]

    def learn(self, convolutions: Iterable[Convolution]) -> None:
        """Ask about many at once, which takes less time. Raises as `workspace_bytes`."""
        new = [convolution for convolution in dict.fromkeys(convolutions) if convolution not in self._known]
        unrounded = [convolution for convolution in new if convolution.dtype == "float32" and not convolution.tf32]
        if unrounded:
            if self._fork is None or not self._fork.answers:
                self._fork = _CudnnFork(self)
            self._known |= zip(unrounded, self._fork.ask(unrounded), strict=True)
        for convolution in new:
            if convolution not in self._known:
                self._known[convolution] = self._ask(convolution)

    def _ask(self, convolution: Convolution) -> int | None:
        made: list[ctypes.c_void_p] = []
        try:
            graph = self._graph(convolution, made)
            if graph is None:
                return None
            engine = self._new(_ENGINE, made)
            for mode in (_INSTANT, _FALLBACK):
                for config in self._configs(graph, mode, made):
                    if not self._is_refused(config, engine, convolution):
                        nbytes = self._plan_bytes(config, made)
                        if nbytes is not None:
                            return nbytes
            return None
        finally:
            for descriptor in reversed(made):
                self._cudnn.cudnnBackendDestroyDescriptor(descriptor)

    def _graph(self, convolution: Convolution, made: list[ctypes.c_void_p]) -> ctypes.c_void_p | None:
        """A graph of the one operation, or None where cuDNN refuses it."""
        last, data = convolution.channels_last, _DATA_TYPES[convolution.dtype]
        shapes = (convolution.image, convolution.weight, convolution.result)
        tensors = [self._tensor(shape, last, data, key, made) for key, shape in zip(b"xwy", shapes, strict=True)]
        kernel = self._new(_CONVOLUTION, made)
        self._put(kernel, 100, _TYPE_DATA, ctypes.c_int(_DATA_TYPES["float32"] if data in (0, 2, 9) else data))
        self._put(kernel, 101, _TYPE_MODE, ctypes.c_int(_CROSS_CORRELATION))
        self._put(kernel, 106, _TYPE_INT64, ctypes.c_int64(len(convolution.stride)))
        values = (
            (102, convolution.dilation),
            (103, convolution.stride),
            (104, convolution.padding),
            (105, convolution.padding),
        )
        for attribute, numbers in values:
            self._put(kernel, attribute, _TYPE_INT64, _int64s(numbers), len(numbers))
        if self._finalize(kernel):
            return None
        kind, (alpha, beta, *slots) = _OPERATIONS[convolution.direction]
        operation = self._new(kind, made)
        self._put(operation, alpha, _TYPE_DOUBLE, ctypes.c_double(1.0))
        self._put(operation, beta, _TYPE_DOUBLE, ctypes.c_double(0.0))
        for attribute, descriptor in zip(slots, (kernel, *tensors), strict=True):
            self._put(operation, attribute, _TYPE_DESCRIPTOR, ctypes.c_void_p(descriptor.value))
        if self._finalize(operation):
            return None
        graph = self._new(_GRAPH, made)
        self._put(graph, 801, _TYPE_DESCRIPTOR, ctypes.c_void_p(operation.value))
        return None if self._finalize(graph) else graph

    def _tensor(self, shape: Shape, last: bool, data: int, key: int, made: list[ctypes.c_void_p]) -> ctypes.c_void_p:
        tensor = self._new(_TENSOR, made)
        strides = _strides(shape, last)
        self._put(tensor, 901, _TYPE_DATA, ctypes.c_int(data))
        self._put(tensor, 902, _TYPE_INT64, _int64s(shape), len(shape))
        self._put(tensor, 903, _TYPE_INT64, _int64s(strides), len(shape))
        self._put(tensor, 900, _TYPE_INT64, ctypes.c_int64(16))
        self._put(tensor, 906, _TYPE_INT64, ctypes.c_int64(key))
        self._finalize(tensor)
        return tensor

    def _configs(self, graph: ctypes.c_void_p, mode: int, made: list[ctypes.c_void_p]) -> Iterator[ctypes.c_void_p]:
        """What the heuristic names, best first. Each costs cuDNN time, and mostly the first is the one that runs."""
        seen = 0
        for wanted in _WANTED_CONFIGS:  # what has answered once goes through its whole list when it is read again
            heuristics = self._new(_HEURISTICS, made)
            self._put(heuristics, 204, _TYPE_DESCRIPTOR, ctypes.c_void_p(self._device.value))
            self._put(heuristics, 201, _TYPE_DESCRIPTOR, ctypes.c_void_p(graph.value))
            self._put(heuristics, 200, _TYPE_HEURISTIC, ctypes.c_int(mode))
            if self._finalize(heuristics):
                return
            configs = [self._new(_ENGINECFG, made) for _ in range(wanted)]
            handles = (ctypes.c_void_p * wanted)(*[config.value for config in configs])
            count = self._get(heuristics, 202, _TYPE_DESCRIPTOR, handles, wanted) or 0
            yield from configs[seen:count]
            if count < wanted:
                return
            seen = count

    def _is_refused(self, config: ctypes.c_void_p, engine: ctypes.c_void_p, asked: Convolution) -> bool:
        """Whether torch passes the engine over, which `engine` receives: it would round operands without leave."""
        if asked.dtype != "float32":
            return False
        slot = (ctypes.c_void_p * 1)(engine.value)
        if self._get(config, 300, _TYPE_DESCRIPTOR, slot, 1) is None:
            return True
        notes = (ctypes.c_int * _MAX_NOTES)()
        count = self._get(engine, 1303, _TYPE_NOTE, notes, _MAX_NOTES) or 0
        found = set(notes[:count])
        return _NOTE_ROUNDS_DOWN in found or (not asked.tf32 and _NOTE_TENSOR_CORE in found)

    def _plan_bytes(self, config: ctypes.c_void_p, made: list[ctypes.c_void_p]) -> int | None:
        plan = self._new(_PLAN, made)
        self._put(plan, 407, _TYPE_DESCRIPTOR, ctypes.c_void_p(self._device.value))
        self._put(plan, 401, _TYPE_DESCRIPTOR, ctypes.c_void_p(config.value))
        if self._finalize(plan):
            return None
        size = (ctypes.c_int64 * 1)()
        return None if self._get(plan, 402, _TYPE_INT64, size, 1) is None else int(size[0])

    def _create(self, kind: int) -> ctypes.c_void_p:
        descriptor = ctypes.c_void_p()
        if self._cudnn.cudnnBackendCreateDescriptor(kind, ctypes.byref(descriptor)):
            raise Unsupported(f"cuDNN does not know descriptor {kind}")
        return descriptor

    def _new(self, kind: int, made: list[ctypes.c_void_p]) -> ctypes.c_void_p:
        descriptor = self._create(kind)
        made.append(descriptor)
        return descriptor

    def _finalize(self, descriptor: ctypes.c_void_p) -> int:
        return int(self._cudnn.cudnnBackendFinalize(descriptor))

    def _put(self, descriptor: ctypes.c_void_p, name: int, kind: int, value: object, count: int = 1) -> int:
        return int(
            self._cudnn.cudnnBackendSetAttribute(descriptor, name, kind, ctypes.c_int64(count), ctypes.byref(value))  # type: ignore[arg-type]
        )

    def _get(self, descriptor: ctypes.c_void_p, name: int, kind: int, values: object, count: int) -> int | None:
        """How many values came, or None where cuDNN refuses."""
        found = ctypes.c_int64(0)
        failed = self._cudnn.cudnnBackendGetAttribute(
            descriptor, name, kind, ctypes.c_int64(count), ctypes.byref(found), values
        )
        return None if failed else int(found.value)


_NO_TF32 = "NVIDIA_TF32_OVERRIDE"
_END_S = 2.0  # for a process that closed its pipe to be gone


class _CudnnFork:
    """A fork of this process in which cuDNN leaves engines out that round float32 operands."""

    def __init__(self, plans: CudnnPlans) -> None:
        """Start it; it ends with this process."""
        context = multiprocessing.get_context("fork")
        self._owner = os.getpid()
        self._questions, questions = context.Pipe()
        self._process = context.Process(target=_answer, args=(plans, self._questions, questions), daemon=True)
        self._process.start()
        questions.close()

    @property
    def answers(self) -> bool:
        """Whether it is alive, and this process's rather than that of one that this was forked from."""
        return self._owner == os.getpid() and self._process.is_alive()

    def ask(self, convolutions: list[Convolution]) -> list[int | None]:
        """The workspaces in order. Raises Unsupported if cuDNN crashed."""
        try:
            self._questions.send(convolutions)
            answer: list[int | None] = self._questions.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=_END_S)
            raise Unsupported("no cuDNN workspaces: the process that asked cuDNN died") from error
        return answer


def _answer(plans: CudnnPlans, asking: Any, questions: Any) -> None:
    """The fork's work, until `asking`, the other end of `questions`, is closed."""
    asking.close()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault(_NO_TF32, "0")
    with contextlib.suppress(EOFError, OSError):
        while True:
            questions.send([plans._ask(convolution) for convolution in questions.recv()])
    os._exit(0)


def _int64s(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _strides(shape: Shape, last: bool) -> Shape:
    order = [1, *range(len(shape) - 1, 1, -1), 0] if last else list(range(len(shape) - 1, -1, -1))
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


@functools.cache
def _library() -> ctypes.CDLL:
    """The cuDNN that torch would load, found without importing torch. Raises Unsupported."""
    refusals = []
    for place in _places():
        try:
            cudnn = ctypes.CDLL(place)
            version = int(cudnn.cudnnGetVersion())
        except (OSError, AttributeError) as error:
            refusals.append(str(error))
            continue
        if version < LEAST_VERSION:
            raise Unsupported(f"no cuDNN workspaces: cuDNN {version} is older than {LEAST_VERSION}")
        return cudnn
    raise Unsupported(f"no cuDNN workspaces: {LIBRARY} cannot be loaded ({refusals[-1]})")


def library_facts() -> list[Any]:
    """What decides the plans beside the device: cuDNN's files, the driver, the GPUs, variables of the environment.

    Raises:
        Unsupported: The library has no file that can be told from another.
    """
    place = next(_places())
    if place == LIBRARY:
        raise Unsupported("no cuDNN workspaces: the place of the library is not known")
    files = [(file.name, file.stat()) for file in sorted(Path(place).parent.glob("libcudnn*"))]
    driver = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia*"))
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_READ_BY_CUDNN)}
    return [place, [(name, found.st_size, found.st_mtime_ns) for name, found in files], driver.value, gpus, variables]


_READ_BY_CUDNN = ("CUDA_", "CUDNN_", "LD_", "NVIDIA_")


def _places() -> Iterator[str]:
    """Where cuDNN may lie: in its own pip package, with torch's own libraries, on the system's path."""
    for package, below in (("nvidia", "cudnn/lib"), ("torch", "lib")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder, below, LIBRARY)
            if path.exists():
                yield str(path)
    yield LIBRARY
