"""The training step, run on memory that does not exist, as a `Recording`.

`record_training` runs some steps under `FakeCuda` and notes every kernel with what it was given, every storage with its
birth and death, and which module was running; `record_case` does so for a case of the grid. It needs a separate
process: see `fake_cuda`.

Modules are followed with torch's own hooks (before and after each module, before each node of the backward, after the
optimizer's step). Only numbers and strings are noted: no tensor, module or node is kept alive, so everything is freed
when it would be without recording. Not covered: operators of one module that run in another's stead (fused by torch
itself), and keyword arguments of modules: nodes that made those are taken for the callee's.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves

from bench import catalog
from bench.catalog.settling import parts_of, settles_after, take_every_iteration
from bench.errors import ReadsValues
from bench.estimators.collector import collected_before, collector_off
from bench.estimators.fake_cuda import FakeCuda, block_of
from bench.estimators.recording import Call, Entry, Freed, Output, Phase, Recording, StepEnd, sort_frees
from bench.plan import image_spec
from bench.records import Case
from bench.records import Protocol as MeasuringProtocol

if TYPE_CHECKING:
    from bench.estimators.temporaries import Machine
    from bench.workload.step import UpdateInBackward

ALIKE = 2
"""Steps recorded once the optimizer has settled, as almost all have after the first; the replay goes on from there."""

_SEEN = "stepbench"
"""Key in a node's metadata: it has been given its module."""


class Training(Protocol):
    """What is recorded."""

    @property
    def model(self) -> torch.nn.Module:
        """On the device."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | UpdateInBackward:
        """Over the model's parameters."""

    @property
    def batch(self) -> tuple[torch.Tensor, ...]:
        """Images and labels on the device."""

    def step(self) -> None:
        """One optimizer step; what it keeps alive is kept until the next has ended."""


def record_case(
    case: Case,
    machine: Machine,
    protocol: MeasuringProtocol | None = None,
    steps: int | None = None,
    build: Callable[[torch.device], Training] | None = None,
) -> Recording:
    """Run the case's step over memory that does not exist; in a separate process.

    Args:
        case: Any.
        machine: The GPU and torch.
        protocol: The default one unless given.
        steps: As many as it takes until they are alike unless given.
        build: Makes what is recorded; the case's workload unless given.

    Raises:
        Unsupported: The case cannot run, or cannot be traced.
        UnknownNameError: Unknown data set, model or optimizer.
        Exception: Whatever the model or the optimizer raises.
    """
    from bench.estimators.layers import refusals_in_words

    protocol = protocol or MeasuringProtocol()
    with refusals_in_words():
        return record_training(
            build or (lambda device: CaseTraining(case, protocol, device)),
            steps,
            machine.compute_capability,
            machine.properties,
            catalog.optimizer(case.optimizer.name).settles_after,
        )


class CaseTraining:
    """The workload of a case with its one synthetic batch."""

    def __init__(self, case: Case, protocol: MeasuringProtocol, device: torch.device) -> None:
        """Build model, optimizer and batch in the order in which a run does."""
        from bench.workload import build_workload
        from bench.workload.inputs import build_inputs

        self._workload = build_workload(case, image_spec(case.dataset, case.image_size), protocol, device)
        self.model, self.optimizer = self._workload.model, self._workload.optimizer
        self._inputs = build_inputs(case, catalog.describe_dataset(case.dataset), protocol, device)
        self.batch = next(self._inputs)
        declared = catalog.model(case.model.name).inputs
        self.batch_names = tuple(f"input {number}" for number in range(len(declared)))

    def step(self) -> None:
        """See `Training`."""
        self._workload.step(itertools.repeat(self.batch))


def record_training(
    build: Callable[[torch.device], Training],
    steps: int | None = None,
    compute_capability: tuple[int, int] = (9, 0),
    properties: Mapping[str, Any] | None = None,
    settles_after: Callable[[torch.optim.Optimizer], int] = settles_after,
) -> Recording:
    """Record some steps of a training.

    Args:
        build: Makes model, optimizer and batch on the device, in the order in which a run does.
        steps: How many; as many as it takes unless given, so that the last two are like all that follow.
        compute_capability: Of the GPU; attention chooses its kernel by it.
        properties: What else `torch.cuda.get_device_properties` answers, by its own names.
        settles_after: See `OptimizerEntry`.

    Raises:
        ReadsValues: The step reads values from the device.
        Unsupported: This torch does not allow the trace.
    """
    with modules_followed() as modules:
        recorder = _Recorder(modules)
        collected_before()
        with collector_off(), FakeCuda(recorder, compute_capability, properties) as cuda:
            training = build(torch.device("cuda", 0))
            recorder.note_roles(training)
            cuda.tell_deaths()
            recorder.entries.append(StepEnd(0))
            for part in parts_of(training.optimizer):
                take_every_iteration(part)
            count = steps or max(map(settles_after, parts_of(training.optimizer))) + ALIKE
            with _phases(recorder, training):
                for step in range(1, count + 1):
                    training.step()
                    recorder.note_roles(training)
                    cuda.tell_deaths()
                    recorder.entries.append(StepEnd(step))
            entries, recorder.entries = recorder.entries, []
            del training
        return Recording(sort_frees(entries), recorder.roles, modules.holders, cuda.asked)


class _Recorder:
    """Is called for kernels and frees, and tracks which part of the step is running."""

    def __init__(self, modules: Modules) -> None:
        self.entries: list[Entry] = []
        self.roles: dict[int, str] = {}
        self.phase = Phase.SETUP
        self._modules = modules

    def called(
        self, operator: str, arguments: tuple[Any, ...], outputs: tuple[Output, ...], written: tuple[int, ...]
    ) -> None:
        self.entries.append(Call(operator, arguments, outputs, self.phase, written, self._modules.path))

    def freed(self, block: int) -> None:
        self.entries.append(Freed(block))

    def reads(self, operator: str) -> None:
        """Optimizers may read numbers: their own (ASGD), else 0 will do (Adafactor); what a model does is unknown."""
        if self.phase != Phase.OPTIMIZER:
            raise ReadsValues(operator)

    def note_roles(self, training: Training) -> None:
        """Remember which storages hold parameters, gradients, optimizer state and the batch."""
        groups = {
            "optimizer_state": tree_leaves(list(training.optimizer.state.values())),
            "gradients": [parameter.grad for parameter in training.model.parameters()],
            "parameters": [*training.model.parameters(), *training.model.buffers()],
            "batch": list(training.batch),
        }
        for name, tensor in zip(getattr(training, "batch_names", ()), training.batch, strict=False):
            self._modules.hold(tensor, name, "")
        for role, tensors in groups.items():
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                    self.roles[block_of(tensor)] = role


@contextlib.contextmanager
def _phases(recorder: _Recorder, training: Training) -> Iterator[None]:
    """Follow the parts of a step: what comes after zero_grad is the forward, after the backward the optimizer."""
    optimizer = training.optimizer
    backward, zero_grad = torch.autograd.backward, optimizer.zero_grad
    outside: list[Phase] = []

    def followed(call: Callable[..., Any], during: Phase, after: Phase) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            if outside and during is Phase.ZERO_GRAD:  # between two evaluations of one step
                recorder.note_roles(training)
            recorder.phase = during
            result = call(*args, **kwargs)
            recorder.phase = after
            return result

        return run

    def entered(module: torch.nn.Module, args: Any) -> None:
        """The forward of a further micro-batch; within a backward, modules may run again."""
        if recorder.phase is Phase.OPTIMIZER:
            recorder.phase = Phase.FORWARD

    def stepping(*args: Any) -> None:
        """A step may come within the backward, of one parameter."""
        outside.append(recorder.phase)
        recorder.phase = Phase.OPTIMIZER

    def stepped(*args: Any) -> None:
        recorder.phase = outside.pop()

    torch.autograd.backward = followed(backward, Phase.BACKWARD, Phase.OPTIMIZER)
    optimizer.zero_grad = followed(zero_grad, Phase.ZERO_GRAD, Phase.FORWARD)  # type: ignore[method-assign]
    handles = (
        register_module_forward_pre_hook(entered),
        register_optimizer_step_pre_hook(stepping),
        register_optimizer_step_post_hook(stepped),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch.autograd.backward = backward
        del optimizer.zero_grad


@contextlib.contextmanager
def modules_followed() -> Iterator[Modules]:
    """Know which module is at work while the context is open; it must be open before the model is built."""
    modules = Modules()
    backward = torch.autograd.backward

    @functools.wraps(backward)
    def followed(tensors: Any, *args: Any, **kwargs: Any) -> None:
        modules.label(tensors)
        try:
            backward(tensors, *args, **kwargs)
        finally:
            modules.forget_node()

    with contextlib.ExitStack() as stack:
        for handle in (
            register_module_forward_pre_hook(modules.enter),
            register_module_forward_hook(modules.leave, always_call=True),
            register_optimizer_step_post_hook(modules.stepped),
        ):
            stack.callback(handle.remove)
        torch.autograd.backward = followed
        try:
            yield modules
        finally:
            torch.autograd.backward = backward


class Modules:
    """Knows which module is running, forward or backward, and who holds which storage.

    Attributes:
        holders: See `Recording`.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self.holders: dict[int, tuple[str, str]] = {}
        self._stack: list[str] = []
        self._node: str | None = None
        self._root: weakref.ref[torch.nn.Module] | None = None
        self._modules: dict[int, str] = {}
        self._parameters: dict[int, str] = {}

    @property
    def path(self) -> str | None:
        """The module that is running."""
        return self._stack[-1] if self._stack else self._node

    def enter(self, module: torch.nn.Module, args: Any) -> None:
        """Before a module's forward: what made its input belongs to whoever calls it."""
        if not self._stack:
            self._meet(module)
        self.label(args)
        self._stack.append(self._modules.get(id(module)) or type(module).__name__)

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """After a module's forward: what made its output and has no module yet is its own."""
        self.label(output)
        if self._stack:
            self._stack.pop()

    def stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After the optimizer's step: gradients and state have their final storages."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._parameters.get(id(parameter), "")
                self.hold(parameter.grad, name, "")
                for word, value in optimizer.state.get(parameter, {}).items():
                    self.hold(value, name, str(word))

    def forget_node(self) -> None:
        """After a backward."""
        self._node = None

    def label(self, value: Any) -> None:
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

    def _meet(self, module: torch.nn.Module) -> None:
        """Learn the names of the outermost module and all below it, once; where parameters lie, each time."""
        if self._root is None or self._root() is None:
            self._root = weakref.ref(module)
            self._modules = {id(part): name or type(part).__name__ for name, part in module.named_modules()}
            self._parameters = {id(parameter): name for name, parameter in module.named_parameters()}
        root = self._root()
        if root is module:
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                self.hold(tensor, name, "")

    def hold(self, value: Any, name: str, word: str) -> None:
        """Note what a tensor holds: see `Recording.holders`."""
        if isinstance(value, torch.Tensor) and value.is_cuda:
            self.holders[block_of(value)] = name, word

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
