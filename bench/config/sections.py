"""The sections of a configuration and their keys."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from bench.config.values import BatchSizes, Bytes, ImageSizes, Name, Patterns, Seconds, TargetInterval, choices, words
from bench.errors import nearest, nearest_sentence
from bench.records import AXES, Choice, InputPath, MemoryFormat, Precision, Protocol


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Grid(_Section):
    """The axes; the plan is their product, in this order, the last one fastest."""

    dataset: choices("dataset")  # type: ignore[valid-type]
    model: choices("model")  # type: ignore[valid-type]
    optimizer: choices("optimizer")  # type: ignore[valid-type]
    batch_size: BatchSizes
    precision: words(Precision) = ("float32",)  # type: ignore[valid-type]
    memory_format: words(MemoryFormat) = ("contiguous",)  # type: ignore[valid-type]
    input: words(InputPath) = ("synthetic",)  # type: ignore[valid-type]
    image_size: ImageSizes | None = None


class Include(_Section):
    """A grid added to the main one; omitted axes are taken from the main grid. Excludes do not apply to it."""

    reason: str = Field(min_length=1)
    dataset: choices("dataset") | None = None  # type: ignore[valid-type]
    model: choices("model") | None = None  # type: ignore[valid-type]
    optimizer: choices("optimizer") | None = None  # type: ignore[valid-type]
    batch_size: BatchSizes | None = None
    precision: words(Precision) | None = None  # type: ignore[valid-type]
    memory_format: words(MemoryFormat) | None = None  # type: ignore[valid-type]
    input: words(InputPath) | None = None  # type: ignore[valid-type]
    image_size: ImageSizes | None = None


_CLOSED: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "memory_format": get_args(MemoryFormat),
    "input": get_args(InputPath),
    "device": ("cpu", "cuda"),
}


class Exclude(_Section):
    """Cases that are planned as skipped: those that match on every axis named. Patterns may contain `*` and `?`."""

    reason: str = Field(min_length=1)
    dataset: Patterns | None = None
    model: Patterns | None = None
    optimizer: Patterns | None = None
    batch_size: BatchSizes | None = None
    precision: Patterns | None = None
    memory_format: Patterns | None = None
    input: Patterns | None = None
    image_size: ImageSizes | None = None
    device: Patterns | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Exclude:
        """Refuse a rule without an axis (it would skip everything) and values that no case can have."""
        axes = (*AXES, "device")
        if all(getattr(self, axis) is None for axis in axes):
            raise ValueError(f"no axis given; name at least one of {', '.join(axes)}")
        for axis, allowed in _CLOSED.items():
            for word in getattr(self, axis) or ():
                if not any(fnmatch.fnmatchcase(item, word) for item in allowed):
                    near = nearest_sentence(nearest(word, allowed))
                    raise ValueError(f'{axis}: "{word}" matches nothing. {near}Allowed: {", ".join(allowed)}')
        return self

    def matches(self, values: Mapping[str, str | int]) -> bool:
        """Whether the rule applies to a case with these axes (and `device`)."""
        return all(
            values[axis] in wanted
            if axis in ("batch_size", "image_size")
            else any(fnmatch.fnmatchcase(str(values[axis]), pattern) for pattern in wanted)
            for axis in (*AXES, "device")
            if (wanted := getattr(self, axis)) is not None
        )


LEAST_REPEATS = 5
"""The minimum number of runs per case before its interval may end the repeats; `bench.sweep.stopping` explains why."""

TARGETS_FRAC = {"cuda": 0.01, "cpu": 0.05}
"""What `target_interval = "auto"` stands for: on a CPU shared with other work, processes differ by several percent."""


class Measure(_Section):
    """How each case is measured, and how often; see `records.Protocol`."""

    repeats: int = Field(3, ge=1, le=1000)
    target_interval: TargetInterval | None = None
    max_repeats: int = Field(20, ge=1, le=1000, validate_default=True)
    time_budget: Seconds | None = None
    order: Literal["interleaved", "sequential"] = "interleaved"
    seed: int = Field(42, ge=0, lt=1 << 31)
    warmup_steps: int = Field(5, ge=1, le=10_000)
    measured_steps: int = Field(30, ge=1, le=100_000)
    min_window: Seconds = 0.3
    loader_workers: int = Field(2, ge=0, le=256)
    threads: int | None = Field(None, ge=1, le=4096)
    cudnn_benchmark: bool = False
    deterministic: bool = False
    compiled: bool = False
    gradient_noise: bool = False

    @field_validator("max_repeats")
    @classmethod
    def _leaves_room(cls, value: int, info: ValidationInfo) -> int:
        """Refuse a ceiling below the floor."""
        repeats = info.data.get("repeats", 1)
        least = max(repeats, LEAST_REPEATS)
        if info.data.get("target_interval") is not None and value < least:
            raise ValueError(f"{value} is below the minimum of {least} runs per case that target_interval needs")
        return value

    @field_validator("time_budget")
    @classmethod
    def _has_a_use(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Refuse a budget that would have no effect."""
        if value is not None and info.data.get("target_interval", "not valid") is None:
            raise ValueError(
                "limits the repeats that target_interval adds: set target_interval too, or remove time_budget"
            )
        return value

    @property
    def least_repeats(self) -> int:
        """The minimum number of runs per case."""
        return self.repeats if self.target_interval is None else max(self.repeats, LEAST_REPEATS)

    @property
    def most_repeats(self) -> int:
        """The maximum number of runs per case."""
        return self.repeats if self.target_interval is None else self.max_repeats

    def target_frac(self, device: str) -> float | None:
        """The target half-width of the interval of a case's throughput; `None` where repeats are fixed.

        Args:
            device: `cpu` or `cuda`.
        """
        return TARGETS_FRAC[device] if isinstance(self.target_interval, str) else self.target_interval


class Limits(_Section):
    """What a run may use before it is stopped."""

    run_timeout: Seconds = 300.0
    host_memory: Bytes | None = None  # for a worker on the CPU; 90 % of the free memory by default
    infrastructure_failures: int = Field(3, ge=1, le=1000)  # in a row, before the sweep stops


class Data(_Section):
    """Where data sets are stored."""

    root: str | None = None
    fetch: bool = True  # download missing data sets that the grid reads from files


class SweepConfig(_Section):
    """A whole configuration."""

    name: Name
    description: str = ""
    grid: Grid
    include: list[Include] = []
    exclude: list[Exclude] = []
    measure: Measure = Measure()
    limits: Limits = Limits()
    data: Data = Data()

    def as_json(self) -> dict[str, Any]:
        """The configuration, defaults filled in, as a JSON object; where data lie is the user's own business."""
        return {name: _plain(value) for name, value in self if name != "data"}

    @property
    def protocol(self) -> Protocol:
        """The part of the configuration that a run needs and results are keyed by."""
        measure = self.measure.model_dump()
        measure["min_window_s"] = measure.pop("min_window")
        for name in ("repeats", "order", "target_interval", "max_repeats", "time_budget"):
            del measure[name]  # how many runs there are, and in which order, is not part of what one does
        return Protocol(**measure, data_root=self.data.root)


def _plain(value: Any) -> Any:
    """A checked value as JSON has it: entries of catalogs as they are written, what is not given left out."""
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in value if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Choice) else value
