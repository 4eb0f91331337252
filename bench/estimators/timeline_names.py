"""Names for what a recording holds: which module made a storage, whose gradient or optimizer state it is.

`watch_training` is wrapped round the recording of a step. It listens with torch's own hooks (before and after each
module, before each node of the backward, after the optimizer's step) and at `fake_cuda.Memory`, and notes numbers and
strings only: it holds no tensor, no module and no node, so that everything dies when it would die unwatched.
`tests/unit/test_timeline_names.py` holds that the recording is the same with and without it.

Left out: operators of one module that run in another's stead (fused by torch itself), and keyword arguments of modules:
nodes that made those are taken for the callee's.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from bench.estimators.fake_cuda import block_of
from bench.estimators.fake_cuda.memory import Memory
from bench.estimators.tensors import Spec

_SEEN = "stepbench"
"""Key in a node's metadata: it has been given its module."""


class Birth(NamedTuple):
    """How a storage began.

    Attributes:
        path: Dotted path of the module that ran (for the outermost its class), None outside all modules.
        spec: Type, shape and strides of the tensor that it was made for.
    """

    path: str | None
    spec: Spec


@dataclass
class Names:
    """What was learnt of storages, by their number in the recording.

    Attributes:
        births: Of every storage.
        holders: The parameter's or buffer's dotted name, and for optimizer state the optimizer's word for it
            (`exp_avg`), else an empty string.
    """

    births: dict[int, Birth] = field(default_factory=dict)
    holders: dict[int, tuple[str, str]] = field(default_factory=dict)


@contextlib.contextmanager
def watch_training() -> Iterator[Names]:
    """Names of all storages that are made while the context is open; it must be open before the model is built."""
    watch = _Watch()
    with contextlib.ExitStack() as stack:
        for handle in (
            register_module_forward_pre_hook(watch.enter),
            register_module_forward_hook(watch.leave, always_call=True),
            register_optimizer_step_post_hook(watch.stepped),
        ):
            stack.callback(handle.remove)
        stack.enter_context(_births_noted(watch))
        stack.enter_context(_backward_followed(watch))
        yield watch.names


class _Watch:
    """Knows which module is running, forward or backward."""

    def __init__(self) -> None:
        self.names = Names()
        self._stack: list[str] = []
        self._node: str | None = None
        self._root: weakref.ref[torch.nn.Module] | None = None
        self._modules: dict[int, str] = {}
        self._parameters: dict[int, str] = {}

    @property
    def path(self) -> str | None:
        return self._stack[-1] if self._stack else self._node

    def enter(self, module: torch.nn.Module, args: Any) -> None:
        """Before a module's forward: what made its input belongs to whoever calls it."""
        if not self._stack:
            self._meet(module)
        self._label(args)
        self._stack.append(self._modules.get(id(module)) or type(module).__name__)

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """After a module's forward: what made its output and has no module yet is its own."""
        self._label(output)
        if self._stack:
            self._stack.pop()

    def stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After the optimizer's step: gradients and state have their final storages."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._parameters.get(id(parameter), "")
                self._hold(parameter.grad, name, "")
                for word, value in optimizer.state.get(parameter, {}).items():
                    self._hold(value, name, str(word))

    def begin_backward(self, tensors: Any) -> None:
        self._label(tensors)

    def end_backward(self) -> None:
        self._node = None

    def _meet(self, module: torch.nn.Module) -> None:
        """Learn the names of the outermost module and all below it, once; where parameters lie, each time."""
        if self._root is None or self._root() is None:
            self._root = weakref.ref(module)
            self._modules = {id(part): name or type(part).__name__ for name, part in module.named_modules()}
            self._parameters = {id(parameter): name for name, parameter in module.named_parameters()}
        root = self._root()
        if root is module:
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                self._hold(tensor, name, "")

    def _hold(self, value: Any, name: str, word: str) -> None:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            self.names.holders[block_of(value)] = name, word

    def _label(self, value: Any) -> None:
        """Give the running module's path to the nodes behind some tensors that have none yet."""
        path = self._stack[-1] if self._stack else None
        found = [tensor.grad_fn for tensor in _tensors(value)]
        while found:
            node = found.pop()
            if node is None or node.name().endswith("AccumulateGrad"):
                continue  # the latter belongs to the parameter, lives longer, and makes nothing
            metadata: dict[Any, Any] = node.metadata  # type: ignore[assignment]  # torch's stub takes it for a method
            if _SEEN not in metadata:
                metadata[_SEEN] = True
                node.register_prehook(functools.partial(self._reach, path))
                found += [before for before, _ in node.next_functions]

    def _reach(self, path: str | None, gradients: Any) -> None:
        self._node = path


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@contextlib.contextmanager
def _births_noted(watch: _Watch) -> Iterator[None]:
    """Hear of each storage as it is made, with the number that the recording gives it."""
    allocate = Memory.allocate

    def noted(memory: Memory, spec: Spec) -> torch.Tensor:
        tensor = allocate(memory, spec)
        watch.names.births[memory.count] = Birth(watch.path, spec)
        return tensor

    Memory.allocate = noted  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Memory.allocate = allocate  # type: ignore[method-assign]


@contextlib.contextmanager
def _backward_followed(watch: _Watch) -> Iterator[None]:
    """Label the nodes behind the loss before each backward, and forget the last node after it."""
    backward = torch.autograd.backward

    @functools.wraps(backward)
    def followed(tensors: Any, *args: Any, **kwargs: Any) -> None:
        watch.begin_backward(tensors)
        try:
            backward(tensors, *args, **kwargs)
        finally:
            watch.end_backward()

    torch.autograd.backward = followed
    try:
        yield
    finally:
        torch.autograd.backward = backward
