"""Recordings of cases with their workspaces, what searches for a batch and placements found, and shapes of models.

They are of this process, of the disk, or new ones.

What was seen once need not be again, on this account, with this code and this torch. Reading what is kept needs no
torch; a process that is to stay without it opens `only_kept`. A file is a Python pickle,
compressed, of which only this package's few record types are taken back; what is damaged, foreign or of other code
counts as absent. The folder is `~/.cache/bench/traces`, or the environment's `BENCH_TRACE_CACHE`, which `off` turns
off. It is kept under `MOST_BYTES` by dropping what was used least lately.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import os
import pickle
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bench import catalog, fingerprint
from bench.errors import BenchError, DeviceError, Unsupported
from bench.estimators import recording, tensors
from bench.estimators.cudnn_plans import describe_device, library_facts
from bench.estimators.recording import (
    LEAST_BATCH,
    TRACED_BATCHES,
    Asks,
    AttentionTraits,
    Column,
    ModelShapes,
    Recording,
    join_column,
)
from bench.estimators.temporaries import Machine
from bench.folders import trace_cache_folder
from bench.plan import image_spec
from bench.records import Case, Choice, ImageSpec, stable_hash

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.estimators.memory_settings import MemorySettings
    from bench.estimators.optimizer_parts import Steps, Whole

SUFFIX = ".trace"
MOST_BYTES = 1 << 29
MOST_HELD_BYTES = 1 << 27
"""Of one file when expanded; the largest seen is 2 MB."""

LEVEL = 1
"""Of zlib's: 0.5 MB of a ResNet-50 become 50 KB within 10 ms."""

SHAPES_CODE = ("estimators/fake_cuda/kernels.py", "estimators/layers.py", "estimators/recording.py", "workload")
"""What decides, beside the model's own entry and torch, what shapes a model is seen to have."""

RECORDING_CODE = (
    "catalog/settling.py",
    "estimators/fake_cuda",
    "estimators/kept.py",
    "estimators/optimizer_parts.py",
    "estimators/record.py",
    "estimators/recording.py",
    "estimators/tensors.py",
    "records/case.py",
    "workload",
)
"""What decides, beside the case's own entries and torch, what is recorded; temporaries are worked out afterwards."""


WORKSPACES_CODE = ("estimators/cudnn_plans.py", "estimators/temporaries/convolutions.py", "estimators/workspaces.py")
"""What decides, beside a recording, the device and cuDNN itself, what cuDNN is asked for."""


class Unlimited(NamedTuple):
    """What a batch takes on a device without limit.

    Attributes:
        allocated_bytes: The peak of tensors once the allocator is steady.
        reserved_bytes: The peak of the allocator, likewise.
        peak_bytes: Reserved, over all steps.
    """

    allocated_bytes: int
    reserved_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Trials:
    """What a search for the largest batch found on one device.

    Attributes:
        free: By batch size.
        fits: By batch size and the bytes that torch may take.
        bounds: From which batch on none fits, by those bytes and the batch at which that was checked.
        refused: Batches that the model cannot train on.
    """

    free: dict[int, Unlimited] = field(default_factory=dict)
    fits: dict[tuple[int, int], bool] = field(default_factory=dict)
    bounds: dict[tuple[int, int], int | None] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        """How much was found."""
        return len(self.free) + len(self.fits) + len(self.bounds) + len(self.refused)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a model cannot be seen at an image size."""

    reason: str


class NotKept(Exception):  # noqa: N818 - an answer, not an error
    """What is asked for is not kept, and this process is not to make it."""


_makes = True


@contextlib.contextmanager
def only_kept() -> Iterator[None]:
    """While entered, nothing is recorded: what is not kept raises `NotKept`.

    Torch is then imported only where a variable of its allocator is set, to ask what it makes of that.
    """
    global _makes
    before, _makes = _makes, False
    try:
        yield
    finally:
        _makes = before


def _to_be_made() -> None:
    if not _makes:
        raise NotKept


def machine_of(device: Device, settings: MemorySettings) -> Machine:
    """What of a device, of torch and of its settings decides allocations.

    Raises:
        Unsupported: The trace does not follow such devices.
        DeviceError: The device's file does not state it.
    """
    from bench.devices.vendors import no_trace

    if reason := no_trace(device):
        raise Unsupported(reason)
    needed = ("multiprocessors", "max_threads_per_multiprocessor", "compute_capability")
    missing = [name for name in needed if getattr(device, name) is None]
    if missing:
        raise DeviceError(f"{device.name}: the memory trace needs {', '.join(missing)} in the device's file")
    assert device.multiprocessors and device.max_threads_per_multiprocessor and device.compute_capability
    return Machine(
        device.multiprocessors,
        device.max_threads_per_multiprocessor,
        device.compute_capability,
        settings.version,
        settings.blas,
        device.gpu_name,
        device.memory_bytes,
        device.l2_bytes,
    )


def recorded_on(device: Device) -> Device:
    """The GPU whose kernels stand for those of a device: itself, and one of the catalog for what is not NVIDIA's."""
    from bench.devices import load_device

    return device if device.vendor == "nvidia" else load_device("h200")


@functools.lru_cache(maxsize=8)
def recording_of(case: Case, machine: Machine, *, shared: bool = False) -> Recording:
    """What the case's step does at its batch size, from a recording of this process, of the disk, or a new one.

    Args:
        case: Its input path and allocator make no difference: the batch is taken to lie on the device.
        machine: The GPU and torch.
        shared: Whether other batch sizes of the case are asked for too: two recordings then serve all of them.

    Raises:
        Unsupported: As `record.record_case`.
        UnknownNameError: As `record.record_case`.
    """
    refuse_compiled(case)
    held = replace(case, input="synthetic", allocator="default")
    if case.micro_batch_size >= LEAST_BATCH:
        column = _find_column(_of_micro_batch(held, LEAST_BATCH), machine, record=shared)
        if column is not None:
            return column.at(case.micro_batch_size)
    return _find_recording(held, machine)


def refuse_compiled(case: Case) -> None:
    """Raise Unsupported if the case compiles its model: what the compiler makes of it cannot be foreseen."""
    if case.compile != "false":
        raise Unsupported("no estimate of a compiled model: torch.compile is not modelled")


def _of_micro_batch(case: Case, size: int) -> Case:
    """The same case with micro-batches of so many samples."""
    return replace(case, batch_size=size * case.accumulation)


_Scope = tuple[Asks, object]
"""What a recording asked of the GPU, and what that GPU answered."""


def _scopes(machine: Machine) -> Iterator[_Scope]:
    """What recordings that serve a GPU asked and were told, from those that serve most GPUs on."""
    yield Asks.NOTHING, None
    yield Asks.ATTENTION, AttentionTraits.of(machine.compute_capability)
    yield Asks.CAPABILITY, machine.compute_capability
    yield Asks.PROPERTIES, machine


_columns: dict[tuple[Case, _Scope], Column | None] = {}
_recordings: dict[tuple[Case, _Scope], Recording] = {}
MOST_RECORDINGS = 16
"""Of single batch sizes, in a process."""


def _find_column(case: Case, machine: Machine, *, record: bool) -> Column | None:
    """The case's column; None if it has none, or where it would have to be recorded and `record` is off."""
    for scope in _scopes(machine):
        if (case, scope) in _columns:
            return _columns[case, scope]
    for asks, told in _scopes(machine):
        found = load(_key_of(case, asks, told, TRACED_BATCHES))
        if isinstance(found, Column):
            return _columns.setdefault((case, (asks, told)), found)
    if not record:
        return None
    _to_be_made()
    made, asks = _record_column(case, machine)
    told = dict(_scopes(machine))[asks]
    if made is not None:
        keep(_key_of(case, asks, told, TRACED_BATCHES), made)
    return _columns.setdefault((case, (asks, told)), made)


_whole: list[Whole] = []
"""The column recorded last, if another optimizer's part may go into it."""


def _record_column(case: Case, machine: Machine) -> tuple[Column | None, Asks]:
    """The column and what it asks; None where the case cannot be recorded so: that says nothing of other batches."""
    from bench.estimators.optimizer_parts import Whole, WholeTraining
    from bench.estimators.record import record_case

    for whole in _whole:
        with contextlib.suppress(Exception):  # whatever it raises, the whole step raises too
            if whole.serves(case, machine):
                made = whole.with_optimizer(case.optimizer)
                return made, made.recording.asks

    def record(size: int) -> tuple[Recording, Steps]:
        sized, steps = _of_micro_batch(case, size), cast("Steps", [])
        build = functools.partial(WholeTraining, sized, noted=steps)
        return record_case(sized, machine, build=build), steps

    first, second = TRACED_BATCHES
    asks = Asks.PROPERTIES
    try:
        (one, steps), (other, others) = record(first), record(second)
        asks = max(one.asks, other.asks)
        column = join_column(first, one, second, other)
    except Exception:  # noqa: BLE001 - whatever a model raises at its own batch size is for its own recording to say
        return None, asks
    column = replace(column, recording=replace(column.recording, asks=asks))
    _whole[:] = [Whole(case, machine, column, steps)] if steps == others else []
    return column, asks


def _find_recording(case: Case, machine: Machine) -> Recording:
    for scope in _scopes(machine):
        if (case, scope) in _recordings:
            return _recordings[case, scope]
    sizes = (case.micro_batch_size,)
    found, scope = None, next(_scopes(machine))
    for scope in _scopes(machine):
        found = load(_key_of(case, *scope, sizes))
        if isinstance(found, Recording):
            break
    if not isinstance(found, Recording):
        _to_be_made()
        from bench.estimators.record import record_case

        found = record_case(case, machine)
        scope = found.asks, dict(_scopes(machine))[found.asks]
        keep(_key_of(case, *scope, sizes), found)
    if len(_recordings) >= MOST_RECORDINGS:
        del _recordings[next(iter(_recordings))]
    _recordings[case, scope] = found
    return found


def _key_of(case: Case, asks: Asks, told: object, batch_sizes: Sequence[int]) -> str | None:
    """What names a recording that serves some GPUs; None where it serves one only, and is not kept."""
    return None if asks is Asks.PROPERTIES else cache_key(case, told, batch_sizes)


@functools.lru_cache(maxsize=1024)
def shapes_of(model: Choice, images: ImageSpec) -> ModelShapes:
    """What a model of the catalog looks like at an image size.

    Raises:
        Unsupported: The model cannot take these images.
        UnknownNameError: No such model.
        Exception: Whatever the model raises of its own.
    """
    key = None if catalog.is_external("model", model.name) else _shapes_key(model, images)
    found = load(key)
    if isinstance(found, Refused):
        raise Unsupported(found.reason)
    if not isinstance(found, ModelShapes):
        _to_be_made()
        from bench.estimators.layers import model_shapes

        try:
            found = model_shapes(model, images)
        except Unsupported as reason:
            keep(key, Refused(str(reason)))
            raise
        keep(key, found)
    return found


def refusal_of(model: Choice, images: ImageSpec) -> str | None:
    """Why a model of the catalog cannot take images, as a trial shows; None where it can, or fails in another way."""
    try:
        shapes_of(model, images)
    except Unsupported as reason:
        return str(reason)
    except NotKept:
        raise
    except Exception:  # noqa: BLE001 - whatever the model raises of its own is for its run to say
        return None
    return None


def _shapes_key(model: Choice, images: ImageSpec) -> str:
    code = [fingerprint.code_key(SHAPES_CODE), catalog.code_key("model", model.name)]
    return stable_hash(["shapes", code, _versions(), sys.version_info[:2], str(model), str(images)])


def _versions() -> list[str]:
    return [importlib.metadata.version(name) for name in ("torch", "torchvision")]


def cache_key(case: Case, gpu: object, batch_sizes: Sequence[int]) -> str | None:
    """What names a recording of `case` at micro-batches of `batch_sizes`; None if code that nobody sees takes part.

    Args:
        case: Its input path and allocator make no difference.
        gpu: What the step learned of the GPU: None, its `AttentionTraits` or its compute capability.
        batch_sizes: See above.
    """
    entries: tuple[tuple[catalog.Kind, str], ...] = (
        ("model", case.model.name),
        ("dataset", case.dataset.name),
        ("optimizer", case.optimizer.name),
    )
    if any(catalog.is_external(kind, name) for kind, name in entries):
        return None
    axes = {axis: str(getattr(case, axis)) for axis in ("model", "optimizer", "precision", "memory_format")}
    axes |= {name: str(value) for name, value in case.switches.items() if name != "allocator"}  # which only replays
    images = image_spec(case.dataset, case.image_size)
    code = [fingerprint.code_key(RECORDING_CODE), *(catalog.code_key(kind, name) for kind, name in entries)]
    return stable_hash([code, _versions(), sys.version_info[:2], axes, str(images), gpu, list(batch_sizes)])


def workspaces_key(case: Case, device: Device) -> str | None:
    """What names the workspaces that cuDNN asks for in a recording of `case`; None where they cannot be kept."""
    try:
        known = [describe_device(device), library_facts()]
    except Unsupported:
        return None
    assert device.compute_capability
    recorded = cache_key(case, device.compute_capability, (case.micro_batch_size,))
    return recorded and stable_hash(["workspaces", fingerprint.code_key(WORKSPACES_CODE), recorded, known])


def trials_key(case: Case, device: Device, settings: MemorySettings, *, workspaces: bool) -> str | None:
    """What names the `Trials` of a case's batch sizes on a device; None where they cannot be kept."""
    assert device.compute_capability
    try:
        library = library_facts() if workspaces else None
    except Unsupported:
        return None
    recorded = cache_key(case, device.compute_capability, TRACED_BATCHES)
    code = fingerprint.code_key(fingerprint.ESTIMATE_CODE)
    return recorded and stable_hash(["trials", code, recorded, repr(device), repr(settings), library])


def placement_key(
    case: Case, device: Device, settings: MemorySettings, *, workspaces: bool, fraction: float
) -> str | None:
    """What names the fields of a `choosing.Placement`; None where they cannot be kept."""
    tried = trials_key(case, device, settings, workspaces=workspaces)
    return tried and stable_hash(["placement", tried, fraction])


_TYPES: dict[tuple[str, str], type] = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        recording.Affine,
        recording.Asks,
        recording.Call,
        recording.Column,
        recording.Freed,
        recording.Output,
        recording.Phase,
        recording.Recording,
        recording.StepEnd,
        recording.Workspaces,
        recording.ModelShapes,
        tensors.Spec,
        Refused,
        Trials,
        Unlimited,
    )
}

Held = Column | Recording | ModelShapes | Refused | Trials | tuple[recording.Workspaces, ...] | dict[str, Any]


def any_kept(cases: Iterable[Case], device: str | Device) -> bool:
    """Whether a recording of any of some cases is kept, so that a process without torch is worth asking first."""
    from bench.devices import load_device

    folder = trace_cache_folder()
    try:
        capability = recorded_on(load_device(device)).compute_capability
        if folder is None or capability is None:
            return False
        keys = (
            key
            for case in cases
            for sizes in (TRACED_BATCHES, (case.micro_batch_size,))
            for gpu in (None, AttentionTraits.of(capability), capability)
            if (key := cache_key(case, gpu, sizes))
        )
        return any((folder / f"{key}{SUFFIX}").exists() for key in keys)
    except BenchError:  # whoever is asked for the estimate says it
        return False


def load(key: str | None) -> Held | None:
    """What was kept under `key`; None if nothing is, or nothing sound."""
    folder = trace_cache_folder()
    if key is None or folder is None:
        return None
    path = folder / f"{key}{SUFFIX}"
    try:
        if path.stat().st_uid != os.getuid():
            return None
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(path.read_bytes(), MOST_HELD_BYTES)
        held = _Reader(io.BytesIO(content)).load() if unpacking.eof else None
        os.utime(path)
    except _UNSOUND:
        return None
    return held if _is_whole(held) else None


_UNSOUND = (
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zlib.error,
)
"""What reading a file that nobody wrote so may raise; `pickle` promises no one kind."""


_PLAIN = (str, int, float, type(None))


def _is_whole(held: object) -> bool:
    try:
        if isinstance(held, ModelShapes):
            counts = (held.parameter_bytes, held.trained_bytes, held.sample_elements, held.fixed_elements)
            return all(isinstance(count, int) for count in counts) and isinstance(held.trained, tuple)
        if isinstance(held, Refused):
            return isinstance(held.reason, str)
        if isinstance(held, Trials):
            return _are_trials(held)
        if isinstance(held, dict):
            return all(type(name) is str and isinstance(value, _PLAIN) for name, value in held.items())
        if isinstance(held, tuple):
            return all(type(item) is recording.Workspaces and all(type(size) is int for size in item) for item in held)
        found = held.recording if isinstance(held, Column) else held
        return (
            isinstance(found, Recording)
            and isinstance(found.entries, list)
            and isinstance(found.roles, dict)
            and isinstance(found.holders, dict)
            and found.derived == {}
            and (not isinstance(held, Column) or (isinstance(held.first, int) and isinstance(held.varying, list)))
            and (not isinstance(held, Column) or isinstance(held.family, int))
        )
    except AttributeError:  # a file can leave any field out
        return False


def _are_trials(held: Trials) -> bool:
    pairs = [*held.fits.items(), *held.bounds.items()]
    return (
        all(type(batch) is int and type(peaks) is Unlimited for batch, peaks in held.free.items())
        and all(type(size) is int for peaks in held.free.values() for size in peaks)
        and all(type(key) is tuple and len(key) == 2 and isinstance(value, int | None) for key, value in pairs)
        and isinstance(held.refused, set)
    )


def keep(key: str | None, held: Held) -> None:
    """Keep `held` under `key`; a folder that cannot be written costs the next caller a recording, no more."""
    folder = trace_cache_folder()
    if key is None or folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_room(folder)
        content = zlib.compress(pickle.dumps(held, protocol=5), LEVEL)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as place:
            new = Path(place, key)
            new.write_bytes(content)
            new.replace(folder / f"{key}{SUFFIX}")


def _make_room(folder: Path) -> None:
    """Drop what was used least lately where all together is too large; only what this module wrote."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob(f"{'[0-9a-f]' * 16}{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


class _Reader(pickle.Unpickler):
    """Takes back the types of a recording and no others: a file never runs code."""

    def find_class(self, module: str, name: str) -> Any:
        kind = _TYPES.get((module, name))
        if kind is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a recording")
        return cast(Any, kind)
