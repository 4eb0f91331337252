"""The facts stored with the events of a recording: case, GPU, versions, switches, memory as reported."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from bench import catalog
from bench.errors import BenchError, StoreError, phrase
from bench.records import AXES, SWITCHES, Case, Checkpointing, InputPath, MemoryFormat, Precision, Update, ZeroGrad

FORMAT = 1
MAX_STEPS = 1000

_Text = Annotated[str, StringConstraints(max_length=2000)]
_Name = Annotated[str, StringConstraints(max_length=300)]
_Bytes = Annotated[int, Field(ge=0, lt=1 << 62)]
_Values = dict[_Name, bool | int | _Text | None]


class _Strict(BaseModel):
    """Types are strict; unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class GpuFacts(_Strict):
    """The GPU as CUDA and NVML describe it; None is unknown."""

    name: _Name
    multiprocessors: Annotated[int, Field(gt=0, le=100_000)]
    threads_per_multiprocessor: Annotated[int, Field(gt=0, le=100_000)] | None = None
    compute_capability: Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(min_length=2, max_length=2)]
    total_bytes: _Bytes
    driver_version: _Name | None = None


class Facts(_Strict):
    """The metadata of a recording.

    Attributes:
        format: Of the file; this version writes `FORMAT`.
        loop: Whose training loop ran: `bench` is the step of `bench.workload`, `gpu_capture` that of a bare script.
        recording_key: What two recordings share that need no second run: case, code, environment, steps, stacks.
        case_key: Of the case.
        axes: Of the case, as flat columns.
        status: `ok`, or `oom` where the device's memory ended the step after the last finished one.
        reason: The error's first line, where it is `oom`.
        steps: Finished steps.
        memory_stats: `torch.cuda.memory_stats` at each mark, in bytes and counts (names of `STATISTICS`): before the
            first step and after each; none where memory ran out before. Peaks are since the start of the process.
        at_failure: The same where memory ran out; None if it did not, or where the recorder kept nothing.
        gpu: The device.
        versions: Of torch, torchvision, cuda, cudnn, cublas, bench.
        switches: TF32, cuDNN's benchmark and determinism, the attention backends.
        variables: Environment variables of the allocator and of workspaces that were set.
        memory: In bytes: `free_after_context` (what torch could take: by cudaMemGetInfo, or of a smaller card that was
            played) and `free_after_steps` (cudaMemGetInfo), `nvml_before_context`, `nvml_after_context` and
            `nvml_at_peak` (all processes of the device), `context`, `limit` (the smaller card's memory); None is
            unknown.
        seed: Of weights and images.
    """

    format: Annotated[int, Field(ge=1)]
    loop: Literal["bench", "gpu_capture"]
    recording_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    case_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    axes: dict[_Name, int | _Text]
    status: Literal["ok", "oom"]
    reason: _Text | None = None
    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    memory_stats: Annotated[list[dict[_Name, _Bytes]], Field(max_length=MAX_STEPS + 1)]
    at_failure: dict[_Name, _Bytes] | None = None
    gpu: GpuFacts
    versions: dict[_Name, _Name | None]
    switches: _Values = {}
    variables: dict[_Name, _Text] = {}
    memory: dict[_Name, _Bytes | None] = {}
    seed: int | None = None

    @property
    def last_stats(self) -> dict[str, int]:
        """The last figures that torch reported; empty if none were kept."""
        return self.at_failure or (self.memory_stats[-1] if self.memory_stats else {})


def parse_facts(text: bytes, where: str) -> Facts:
    """Facts from the JSON of a file's metadata. Raises StoreError with every error and its place."""
    try:
        facts = Facts.model_validate_json(text)
    except ValidationError as error:
        faults = [_fault(details) for details in error.errors()[:5]]
        raise StoreError(f"{where}: its metadata are not those of a recording ({'; '.join(faults)})") from error
    if facts.format > FORMAT:
        raise StoreError(f"{where}: written by a newer version (format {facts.format}; this one reads up to {FORMAT})")
    if case_of(facts, where).key != facts.case_key:
        raise StoreError(f"{where}: its axes and its case_key contradict each other")
    failed_in_setup = facts.status == "oom" and not facts.steps and not facts.memory_stats
    if len(facts.memory_stats) != facts.steps + 1 and not failed_in_setup:
        raise StoreError(
            f"{where}: {len(facts.memory_stats)} memory readings for {facts.steps} steps that ended {facts.status}"
        )
    return facts


def _fault(details: ErrorDetails) -> str:
    words = phrase(details["type"], details.get("ctx", {}), details["msg"])
    return f"{'.'.join(map(str, details['loc']))[:80]}: {words}"


def case_of(facts: Facts, where: str) -> Case:
    """The case of the axes. Raises StoreError if they name none; BenchError for a setting that is none."""
    axes: dict[str, Any] = dict(facts.axes)
    if missing := [axis for axis in AXES if axis not in axes and axis not in SWITCHES]:
        raise StoreError(f"{where}: its axes are missing {', '.join(missing)}")
    numbers = (axes["batch_size"], axes["image_size"])
    if not all(isinstance(number, int) and 0 <= number <= 1 << 24 for number in numbers):
        raise StoreError(f"{where}: its batch size and image size must be whole numbers, not {numbers!r:.80}")
    closed = {"precision": Precision, "memory_format": MemoryFormat, "input": InputPath}
    closed |= {"checkpointing": Checkpointing, "update": Update, "zero_grad": ZeroGrad}
    for axis, allowed in closed.items():
        if axes.get(axis, SWITCHES.get(axis)) not in get_args(allowed):
            raise StoreError(f"{where}: {axis} {axes[axis]!r:.80} is not one of {', '.join(get_args(allowed))}")
    try:
        dataset = catalog.parse_choice("dataset", str(axes["dataset"]))
        model = catalog.parse_choice("model", str(axes["model"]))
        optimizer = catalog.parse_choice("optimizer", str(axes["optimizer"]))
    except BenchError as error:
        raise BenchError(f"{where}: {error}") from error
    return Case(
        dataset,
        model,
        optimizer,
        axes["batch_size"],
        axes["precision"],
        axes["memory_format"],
        axes["input"],
        axes["image_size"],
        **{axis: axes[axis] for axis in SWITCHES if axis in axes},
    )
