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
* two virtual tables of libtorch, see `tables.py`;
* `torch.cuda._lazy_init` and a few questions of `torch.cuda`, answered without initialising CUDA.

Everything is put back on leaving. A process that works with a real GPU is still no place for it.
"""

from __future__ import annotations

import contextlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.errors import Unsupported
from bench.estimators.fake_cuda import tables
from bench.estimators.fake_cuda.composites import build_composites
from bench.estimators.fake_cuda.kernels import Kernels, list_operators, redispatch_to_meta
from bench.estimators.fake_cuda.memory import Memory, Recorder, block_of, spec_of

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


class FakeCuda:
    """While entered, `cuda` tensors can be made and computed with, and nothing is computed.

    Example:
        >>> with FakeCuda(recorder):
        ...     model = torch.nn.Linear(4, 4).to("cuda")
    """

    def __init__(self, recorder: Recorder, compute_capability: tuple[int, int] = (9, 0)) -> None:
        """Prepare; nothing is changed before `with`.

        Args:
            recorder: Is told of kernels and of storages that die.
            compute_capability: Of the GPU that is played; attention chooses its kernel by it.
        """
        self.recorder, self.compute_capability = recorder, compute_capability
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FakeCuda:
        check_capabilities()
        for context in (
            warnings.catch_warnings(action="ignore"),
            _compiler_not_loaded(),
            tables.idle_guard(),
            tables.cuda_present(),
            _cuda_module_replaced(self.compute_capability),
            _replaced(torch.nn.init, {"_no_grad_trunc_normal_": _leave_alone}),
            torch.autograd.set_multithreading_enabled(False),
            _kernels_replaced(self.recorder, self.compute_capability),
        ):
            self._stack.enter_context(context)
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
        tables.device_guards()
        tables.check_hooks()
    except (OSError, ValueError, AttributeError) as error:
        missing.append(str(error))
    if missing:
        raise Unsupported(
            f"the memory trace cannot run on torch {torch.__version__}: {'; '.join(missing)}. "
            "It works on Linux with torch 2.6 to 2.15; the formula estimator does not need it"
        )


@contextlib.contextmanager
def _cuda_module_replaced(capability: tuple[int, int]) -> Iterator[None]:
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda device=None: capability,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
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
    """Keep optimizers and `Meta` kernels from importing torch.compile, which takes seconds, only to skip it."""
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stand_in = types.ModuleType(name)
    stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    stand_in.disable = lambda fn=None, *_, **__: fn  # type: ignore[attr-defined]
    stand_in.graph_break = lambda *_, **__: None  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    torch._dynamo = stand_in
    try:
        yield
    finally:
        for loaded in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            del sys.modules[loaded]
        del torch._dynamo


@contextlib.contextmanager
def _kernels_replaced(recorder: Recorder, capability: tuple[int, int]) -> Iterator[None]:
    memory = Memory()
    kernels = Kernels(memory, recorder, capability)
    memory.on_free = recorder.freed
    library = torch._C._dispatch_library("IMPL", "aten", "", __file__, 1)
    computing, viewing = list_operators()
    for name in computing:
        library.impl(name.removeprefix("aten::"), "CUDA", kernels.build(name))
    present = set(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"))
    for name in viewing:
        if name not in present:
            library.impl(name.removeprefix("aten::"), "CUDA", redispatch_to_meta(name))
    for name, composite in build_composites(capability).items():
        library.impl(name, "AutogradCUDA", composite)
    for name in _RANDOM:
        library.impl(name, "CPU", _leave_alone)
    try:
        yield
    finally:
        memory.on_free = None
        library.reset()


def _leave_alone(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Random numbers on the CPU: nobody reads them, and large tensors would cost time and real memory."""
    with torch.no_grad():
        return tensor.zero_() if tensor.numel() <= SMALL_NUMEL else tensor
