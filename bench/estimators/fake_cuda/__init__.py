"""CUDA tensors without a GPU: torch's own dispatcher, autograd and optimizers over memory that does not exist.

How it works. Tensors are plain `torch.Tensor`s on `cuda:0` whose storage is an address that nobody reads (made through
DLPack), and every kernel that torch holds for the CUDA dispatch key is replaced by one that computes nothing: it asks
torch's `Meta` kernel for the shapes of the results and makes tensors of these shapes. Everything above the kernels is
the real thing in C++: autograd and its engine, autocast, composite operators, optimizers. There is neither a dispatch
mode nor a tensor subclass, so torch takes no other path for our sake: gradients are accumulated in place where they
would be, and tensors die when they would die.

Private parts of torch that are used, all of them in this package, tried by `check_capabilities`:

* `torch._C._dispatch_library` and `_dispatch_get_registrations_for_dispatch_key`: kernels of the dispatcher (what
  `torch.library.Library` wraps);
* `torch._C._from_dlpack`: tensors on a device of choice over an address of choice (aten/src/ATen/DLConvertor.cpp);
* two virtual tables of libtorch, the device guard and the hooks of CUDA: interfaces that libtorch asks which device is
  current, how many there are, whether a context exists, whether cuDNN is there. A copy of the table is made, a few
  entries are replaced, and the object or registry is pointed at the copy. The order of entries is read from the headers
  that torch ships with every wheel, and tried before use;
* `torch.cuda._lazy_init` and a few questions of `torch.cuda`, answered without initialising CUDA.

Composite operators whose choice of kernel asks the GPU are answered from the properties of the one that is played.
Everything is put back on leaving. A process that works with a real GPU is still no place for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import platform
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.errors import Unsupported
from bench.estimators.fake_cuda.attention import attention
from bench.estimators.fake_cuda.kernels import TracedKernels, list_operators, redispatch_to_meta
from bench.estimators.fake_cuda.memory import Memory, Recorder, block_of, spec_of
from bench.estimators.recording import Asks, AttentionTraits

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


def _table_replaced(table: Any, names: list[str], answers: Mapping[str, Any]) -> Any:
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
    copy = _table_replaced(table, names, {"getDevice": _constant(CUDA), "getStream": _default_stream()})
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
    object_[0] = ctypes.addressof(_table_replaced(_table(address, len(names)), names, answers))
    try:
        yield
    finally:
        object_[0] = before


def build_composites(gpu: Callable[[], AttentionTraits]) -> dict[str, Callable[..., Any]]:
    """Replacements by operator, for the dispatch key AutogradCUDA."""
    return {"scaled_dot_product_attention": attention(gpu)}


__all__ = ["FakeCuda", "Recorder", "block_of", "check_capabilities", "spec_of"]

SMALL_NUMEL = 4096
"""Random numbers on the CPU are written as zeros up to this many elements and not at all above."""

_RANDOM = (
    "normal_",
    "uniform_",
    "random_",
    "random_.from",
    "random_.to",
    "exponential_",
    "log_normal_",
    "bernoulli_.float",
)


class _DeviceProperties(types.SimpleNamespace):
    """What is known of a GPU."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unsupported(f"the step asks for {name} of the GPU, which is not known of this device")


class FakeCuda:
    """While entered, `cuda` tensors can be made and computed with, and nothing is computed.

    Example:
        >>> with FakeCuda(recorder):
        ...     model = torch.nn.Linear(4, 4).to("cuda")
    """

    def __init__(
        self,
        recorder: Recorder,
        compute_capability: tuple[int, int] = (9, 0),
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare; nothing is changed before `with`.

        Args:
            recorder: Is told of kernels and of storages that die.
            compute_capability: Of the GPU that is played; attention chooses its kernel by it.
            properties: Of that GPU, by the names of `torch.cuda.get_device_properties`.
        """
        self.recorder, self.compute_capability = recorder, compute_capability
        self.asked = Asks.NOTHING
        major, minor = compute_capability
        self._properties = _DeviceProperties(major=major, minor=minor, **(properties or {}))
        self._memory = Memory()
        self._stack = contextlib.ExitStack()

    def get_device_properties(self, device: object = None) -> _DeviceProperties:
        """As `torch.cuda.get_device_properties`."""
        self.asked = Asks.PROPERTIES
        return self._properties

    def get_device_capability(self, device: object = None) -> tuple[int, int]:
        """As `torch.cuda.get_device_capability`."""
        self.asked = max(self.asked, Asks.CAPABILITY)
        return self.compute_capability

    def _attention_traits(self) -> AttentionTraits:
        self.asked = max(self.asked, Asks.ATTENTION)
        return AttentionTraits.of(self.compute_capability)

    def tell_deaths(self) -> None:
        """Tell the recorder of storages that died since the last kernel."""
        self._memory.tell_deaths()

    def __enter__(self) -> FakeCuda:
        check_capabilities()
        for context in (
            warnings.catch_warnings(action="ignore"),
            _compiler_not_loaded(),
            idle_guard(),
            cuda_present(),
            _cuda_module_replaced(self),
            _replaced(torch.nn.init, {"_no_grad_trunc_normal_": _leave_alone}),
            torch.autograd.set_multithreading_enabled(False),
            _kernels_replaced(self._memory, self.recorder, self._attention_traits),
        ):
            self._stack.enter_context(context)
        cudnn: Any = torch.backends.cudnn
        with contextlib.suppress(RuntimeError):  # whoever needs the version is told again
            cudnn.version()
        self.asked = Asks.NOTHING  # torch asks every GPU when it is first asked for cuDNN's version
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def check_capabilities() -> None:
    """Refuse where the private parts of torch that the trace needs are not what they were.

    Raises:
        Unsupported: With what is missing and which versions are known to work.
    """
    needed = ("_dispatch_library", "_dispatch_get_registrations_for_dispatch_key", "_from_dlpack", "_get_schema")
    missing = [f"torch._C.{name} is missing" for name in needed if not hasattr(torch._C, name)]
    try:
        device_guards()
        check_hooks()
    except (OSError, ValueError, AttributeError) as error:
        missing.append(str(error))
    if missing:
        raise Unsupported(
            f"the memory trace cannot run on torch {torch.__version__}: {'; '.join(missing)}. "
            "It works on Linux with torch 2.6 to 2.15; the formula estimator does not need it"
        )


@contextlib.contextmanager
def _cuda_module_replaced(fake: FakeCuda) -> Iterator[None]:
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": fake.get_device_capability,
        "get_device_properties": fake.get_device_properties,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
    }
    with _replaced(torch.cuda, answers):
        yield


@contextlib.contextmanager
def _replaced(module: types.ModuleType, answers: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace functions of a module; those that it lacks are left out."""
    before = {name: getattr(module, name) for name in answers if hasattr(module, name)}
    for name in before:
        setattr(module, name, answers[name])
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(module, name, original)


@contextlib.contextmanager
def _compiler_not_loaded() -> Iterator[None]:
    """Keep optimizers and `Meta` kernels from importing torch.compile, which takes seconds, only to skip it.

    Whatever asks for more than they do gets the real module.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stand_in = types.ModuleType(name)
    stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    stand_in.disable = lambda fn=None, *_, **__: fn  # type: ignore[attr-defined]
    stand_in.graph_break = lambda *_, **__: None  # type: ignore[attr-defined]
    stand_in.__getattr__ = _part_of_compiler  # type: ignore[method-assign]
    sys.modules[name] = stand_in
    torch._dynamo = stand_in
    try:
        yield
    finally:
        if sys.modules[name] is stand_in:
            _unload_compiler()


def _unload_compiler() -> None:
    name = "torch._dynamo"
    for loaded in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[loaded]
    del torch._dynamo


def _part_of_compiler(name: str) -> Any:
    """`torch._dynamo.config`, which checkpointed segments read and which imports nothing else; any other part for real.

    Packages decorate functions with such parts while they are imported (transformers does).
    """
    if name == "config":
        return importlib.import_module("torch._dynamo.config")
    if name.startswith("__"):
        raise AttributeError(name)
    if "__file__" not in vars(sys.modules["torch._dynamo"]):
        _unload_compiler()
    return getattr(importlib.import_module("torch._dynamo"), name)


@contextlib.contextmanager
def _kernels_replaced(memory: Memory, recorder: Recorder, gpu: Callable[[], AttentionTraits]) -> Iterator[None]:
    kernels = TracedKernels(memory, recorder)
    memory.on_free = recorder.freed
    library = torch._C._dispatch_library("IMPL", "aten", "", __file__, 1)
    computing, viewing = list_operators()
    for name in computing:
        library.impl(name.removeprefix("aten::"), "CUDA", kernels.build(name))
    present = set(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"))
    for name in viewing:
        if name not in present:
            library.impl(name.removeprefix("aten::"), "CUDA", redispatch_to_meta(name))
    for name, composite in build_composites(gpu).items():
        library.impl(name, "AutogradCUDA", composite)
    for name in _RANDOM:
        library.impl(name, "CPU", _leave_alone)
    try:
        yield
    finally:
        memory.close()
        library.reset()


def _leave_alone(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Random numbers on the CPU: nobody reads them, and large tensors would cost time and real memory."""
    with torch.no_grad():
        return tensor.zero_() if tensor.numel() <= SMALL_NUMEL else tensor
