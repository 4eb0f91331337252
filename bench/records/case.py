"""What is to be measured, and how: the axes of a case, the protocol, and the keys that tell runs apart."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from bench.records.fields import about, column, key_fields

Precision = Literal["float32", "tf32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
InputPath = Literal["synthetic", "cached", "loader"]
Task = Literal["classification", "segmentation"]
"""What a model predicts: a class per image, or a class per pixel."""
SettingValue = bool | int | float | str | tuple[Any, ...]

MAX_BATCH_SIZE = 1 << 24
MAX_IMAGE_SIZE = 1 << 14
"""The largest of a case, in samples and pixels."""

Checkpointing = Literal["none", "blocks"]
Update = Literal["step", "in_backward"]
ZeroGrad = Literal["none", "zeros"]

SWITCHES: Mapping[str, int | str] = MappingProxyType(
    {
        "accumulation": 1,
        "checkpointing": "none",
        "compile": "false",
        "update": "step",
        "allocator": "default",
        "zero_grad": "none",
    }
)
"""The axes that trade memory for speed or the other way round, each with its default.

A case is keyed by the switches that differ from their defaults, so that older results keep their keys.
"""

AXES = ("dataset", "model", "optimizer", "batch_size", "precision", "memory_format", "input", "image_size", *SWITCHES)


def stable_hash(value: object) -> str:
    """16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """An entry of a catalog with the settings that differ from its defaults, in the order of their names."""

    name: str
    settings: tuple[tuple[str, SettingValue], ...] = ()

    @classmethod
    def of(cls, name: str, settings: Mapping[str, SettingValue] | None = None) -> Choice:
        """A choice from a mapping of settings; lists become tuples."""
        return cls(name, tuple(sorted((key, _frozen(value)) for key, value in (settings or {}).items())))

    @property
    def options(self) -> dict[str, SettingValue]:
        """The settings as a dictionary."""
        return dict(self.settings)

    def __str__(self) -> str:
        """As it is written on the command line: `adam:foreach=false,lr=0.01`."""
        if not self.settings:
            return self.name
        return f"{self.name}:{','.join(f'{key}={_spelled(value)}' for key, value in self.settings)}"


def _frozen(value: Any) -> SettingValue:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


_PLAIN_TEXT = re.compile(r"[A-Za-z_/~.][^,\"'\[\]{}()=\\\s]*")
_TOML_WORDS = ("true", "false", "inf", "nan")


def _spelled(value: SettingValue) -> str:
    """As the command line reads it back: text bare where it cannot be taken for anything else, quoted otherwise."""
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value) and value not in _TOML_WORDS:
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The shape of one sample as the model sees it, how many classes its labels have, and what has a label."""

    channels: int
    height: int
    width: int
    classes: int
    task: Task = "classification"

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        return (self.channels, self.height, self.width)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The shape of one sample's labels: `()` for a class per image, `(H, W)` for a mask."""
        return () if self.task == "classification" else (self.height, self.width)


@dataclass(frozen=True)
class Case:
    """One point of the grid.

    Attributes:
        dataset: With its settings.
        model: With its settings.
        optimizer: With its settings.
        batch_size: Samples of one optimizer step.
        precision: Of forward and loss.
        memory_format: Of images and weights.
        input: Where batches come from.
        image_size: Side of the square image in pixels; 0 is the data set's own.
        accumulation: Micro-batches of a step; their gradients are added up. Divides `batch_size`.
        checkpointing: `blocks` computes the blocks of the model again in the backward.
        compile: `false`, `true`, or `true:budget=B` with inductor's `activation_memory_budget`.
        update: `in_backward` updates each parameter as soon as its gradient is there, and drops the gradient.
        allocator: `default` (what the environment says), `expandable`, or a value of PYTORCH_ALLOC_CONF.
        zero_grad: `zeros` keeps the gradients' memory between steps.
    """

    dataset: Choice
    model: Choice
    optimizer: Choice
    batch_size: int
    precision: Precision = "float32"
    memory_format: MemoryFormat = "contiguous"
    input: InputPath = "synthetic"
    image_size: int = 0
    accumulation: int = 1
    checkpointing: Checkpointing = "none"
    compile: str = "false"
    update: Update = "step"
    allocator: str = "default"
    zero_grad: ZeroGrad = "none"

    @property
    def micro_batch_size(self) -> int:
        """Samples of one forward and backward."""
        return self.batch_size // self.accumulation

    @property
    def switches(self) -> dict[str, int | str]:
        """The switches that differ from their defaults."""
        return {name: getattr(self, name) for name, usual in SWITCHES.items() if getattr(self, name) != usual}

    @property
    def axes(self) -> dict[str, str | int]:
        """The case as flat columns, in the order of `AXES`."""
        return {
            axis: str(value) if isinstance(value, Choice) else value
            for axis, value in ((axis, getattr(self, axis)) for axis in AXES)
        }

    @functools.cached_property
    def key(self) -> str:
        """The `case_key`: the same for the same axes on every machine and version."""
        return case_key(self.axes)

    def __str__(self) -> str:
        """All that tells it from any other case; only values that are usual for every case are left out."""
        return self.label([axis for axis, usual in USUAL.items() if usual is None])

    def label(self, shown: Collection[str] = (), *, batch: bool = True) -> str:
        """The axes that a reader needs: usual values are left out, but for those of `shown` that are no switches.

        Args:
            shown: Axes that are said whatever their value.
            batch: Whether the batch size is said.
        """
        words = [f"{self.model} on {self.dataset}", str(self.optimizer), *[f"batch {self.batch_size}"] * batch]
        words += [
            axis_words(axis, value)
            for axis, usual in USUAL.items()
            if (value := getattr(self, axis))
            and ((axis in shown and axis not in SWITCHES) or value != (usual or value))
        ]
        return ", ".join(words)


def case_key(axes: Mapping[str, object]) -> str:
    """The key of a case with these `AXES`."""
    return stable_hash({axis: value for axis, value in axes.items() if SWITCHES.get(axis) != value})


USUAL = {"precision": "float32", "memory_format": "contiguous", "input": "synthetic", "image_size": None, **SWITCHES}
"""What an axis is where nothing is said of it; None if that depends on the case, and is said only to tell apart."""


def axis_words(axis: str, value: object) -> str:
    """One axis value as text that says which axis it is of."""
    if axis == "image_size":
        return f"{value} px"
    if axis == "accumulation":
        return "no accumulation" if value == 1 else f"{value} micro-batches"
    if axis == "compile" and str(value) not in ("true", "false"):
        return f"compiled, {str(value).partition(':')[2].replace('=', ' ')}"
    return _WORDS.get((axis, str(value))) or (f"allocator {value}" if axis == "allocator" else str(value))


_WORDS = {
    ("checkpointing", "none"): "no checkpointing",
    ("checkpointing", "blocks"): "checkpointed blocks",
    ("compile", "false"): "eager",
    ("compile", "true"): "compiled",
    ("update", "step"): "update in the step",
    ("update", "in_backward"): "update in the backward",
    ("allocator", "default"): "default allocator",
    ("allocator", "expandable"): "expandable segments",
    ("zero_grad", "none"): "gradients dropped",
    ("zero_grad", "zeros"): "gradients zeroed",
}
"""Of the switches."""


def varying_axes(columns: Mapping[str, Sequence[object]], axes: Sequence[str]) -> list[str]:
    """Those of `axes` on which cases of one model and data set differ: to be said wherever cases are listed.

    Args:
        columns: `model`, `dataset` and the axes, one value per case; of equal lengths.
        axes: Further ones than those two and the batch size, which are always said.
    """
    units = list(zip(map(str, columns["model"]), map(str, columns["dataset"]), strict=True))
    found = []
    for axis in axes:
        first: dict[tuple[str, str], str] = {}
        values = map(str, columns[axis])
        if any(first.setdefault(unit, value) != value for unit, value in zip(units, values, strict=True)):
            found.append(axis)
    return found


def name_cases(cases: Collection[Case], shown: Collection[str] = ()) -> dict[Case, str]:
    """What the cases of one list are called there: no two alike.

    Args:
        cases: All that are listed together.
        shown: Axes that are said of every case.
    """
    columns = {axis: [getattr(case, axis) for case in cases] for axis in AXES}
    told = {*shown, *varying_axes(columns, [axis for axis, usual in USUAL.items() if usual is None])}
    return {case: case.label(told) for case in cases}


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a run measures."""

    warmup_steps: int = column(5, key=True)
    measured_steps: int = column(30, key=True)  # at least; more where they are shorter than the window
    min_window_s: float = column(0.3, key=True)  # the measured window lasts at least this long
    seed: int = column(42, key=True, needed=1)
    loader_workers: int = column(2, key=True, differs="flags", first=7)
    # torch's CPU threads in the worker
    threads: int | None = column(None, key=True, differs="flags", first=6, absent="torch's default")
    cudnn_benchmark: bool = column(False, key=True, differs="flags", first=5)
    # torch.use_deterministic_algorithms, with the workspaces of cuBLAS that it asks for
    deterministic: bool = column(False, key=True, differs="flags", first=5)
    compiled: bool = column(False, key=True, differs="flags", first=4)  # torch.compile around the model
    gradient_noise: bool = column(False, key="if true")  # whether a pass of its own measures it
    # of the smaller card that the GPU plays, CUDA's context included
    device_memory_bytes: int | None = column(
        None, key="if true", differs="flags", first=4, absent="the whole card", if_known=True, summary=True
    )
    data_root: str | None = column(None, stored=False, differs="no")  # says nothing about speed, and is private

    @property
    def key(self) -> str:
        """The `protocol_key`."""
        values = key_fields(self)
        if self.deterministic:  # earlier versions meant cuDNN's switch alone, and wrote true
            values["deterministic"] = "torch.use_deterministic_algorithms"
        return stable_hash(values)


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What was found of a data set on disk when a run was planned, as far as the run depends on it.

    Null is what decides nothing: the classes of a set that always has the same number, the files of one that is not
    read.
    """

    data_classes: int | None = column(None, differs="flags", first=8)  # where they were read off files
    data_samples: int | None = column(None, differs="flags", first=8)  # training images
    data_hash: str | None = column(None, differs="flags", first=8)  # names and contents: docs/decisions/0002-keys.md

    @property
    def known(self) -> dict[str, int | str]:
        """The facts that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def changes_since(self, before: DataFacts) -> list[str]:
        """What differs of the facts that both have: `classes 2 -> 52`."""
        now, then = self.known, before.known
        words = {"data_classes": "classes", "data_samples": "training images"}
        changed = [name for name in now if name in then and now[name] != then[name]]
        told = [f"{words[name]} {then[name]} -> {now[name]}" for name in changed if name in words]
        return told or ["the content of its files"] * bool(changed)


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of the plan.

    Attributes:
        case: Which case.
        repeat: Which of its fresh processes, from 0.
        position: When in the order, from 0.
        skip_reason: Why it will not run, or `None`.
        code_key: Of the code and the data that decide what the case's run does; a change of it makes another run.
        data: What of its data set is part of `code_key`.
    """

    case: Case
    repeat: int
    position: int = field(metadata=about(needed=1))
    skip_reason: str | None = None
    code_key: str = ""
    data: DataFacts = DataFacts()


@dataclass(frozen=True, slots=True)
class Group:
    """What must be equal for two runs of a case to be repeats of each other.

    Attributes:
        code_key: Of the code and the data that decide what the case's run does.
        protocol_key: Of how it is measured.
        environment_key: Of the machine and the versions.
    """

    code_key: str = field(metadata=about(differs="code", first=10))
    protocol_key: str
    environment_key: str


def run_key(case_key: str, group: Group, repeat: int, attempt: int) -> str:
    """The name of one run: everything that two equal runs share, and their turn."""
    return stable_hash([case_key, group.code_key, group.protocol_key, group.environment_key, repeat, attempt])
