"""A sweep's configuration: TOML, checked whole before any device is touched.

Every fault of a file is reported at once, each with its place, what was given, what is allowed and the nearest match.
Axes take one value, a list, or (whole numbers) ranges: `{ pow2 = [16, 4096] }`, `{ from = 32, to = 256, step = 32 }`.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from bench.config.values import (
    Accumulations,
    Allocators,
    BatchSizes,
    Bytes,
    Command,
    Compiles,
    Devices,
    ImageSizes,
    Name,
    Parallel,
    Patterns,
    Resources,
    Seconds,
    TargetInterval,
    Word,
    choices,
    name_of,
    shown,
    words,
)
from bench.errors import ConfigError, nearest, nearest_sentence, phrase
from bench.records import (
    ACCELERATORS,
    AXES,
    Checkpointing,
    Choice,
    InputPath,
    MemoryFormat,
    Precision,
    Protocol,
    Update,
    ZeroGrad,
)


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
    accumulation: Accumulations = (1,)
    checkpointing: words(Checkpointing) = ("none",)  # type: ignore[valid-type]
    compile: Compiles = ("false",)
    update: words(Update) = ("step",)  # type: ignore[valid-type]
    allocator: Allocators = ("default",)
    zero_grad: words(ZeroGrad) = ("none",)  # type: ignore[valid-type]


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
    accumulation: Accumulations | None = None
    checkpointing: words(Checkpointing) | None = None  # type: ignore[valid-type]
    compile: Compiles | None = None
    update: words(Update) | None = None  # type: ignore[valid-type]
    allocator: Allocators | None = None
    zero_grad: words(ZeroGrad) | None = None  # type: ignore[valid-type]


_CLOSED: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "memory_format": get_args(MemoryFormat),
    "input": get_args(InputPath),
    "checkpointing": get_args(Checkpointing),
    "update": get_args(Update),
    "zero_grad": get_args(ZeroGrad),
    "device": ("cpu", *ACCELERATORS),
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
    accumulation: Accumulations | None = None
    checkpointing: Patterns | None = None
    compile: Compiles | None = None
    update: Patterns | None = None
    allocator: Patterns | None = None
    zero_grad: Patterns | None = None
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
            if axis in ("batch_size", "image_size", "accumulation")
            else any(fnmatch.fnmatchcase(str(values[axis]), pattern) for pattern in wanted)
            for axis in (*AXES, "device")
            if (wanted := getattr(self, axis)) is not None
        )


LEAST_REPEATS = 5
"""The minimum number of runs per case before its interval may end the repeats; `bench.sweep.stopping` explains why."""

TARGETS_FRAC = {"cuda": 0.01, "xpu": 0.01, "mps": 0.01, "cpu": 0.05}
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
    host_memory: Bytes | None = None  # for a worker on the CPU, or a GPU that takes it; else 90 % of what is free
    device_memory: Bytes | None = None  # of the smaller card that a GPU plays; all of it by default
    infrastructure_failures: int = Field(3, ge=1, le=1000)  # in a row, before the sweep stops


class Data(_Section):
    """Where data sets are stored."""

    root: str | None = None
    fetch: bool = True  # download missing data sets that the grid reads from files


_CLUSTERS = ("slurm", "ray")
_OF_CLUSTERS = {
    "partition": ("slurm",),
    "account": ("slurm",),
    "time": ("slurm",),
    "gres": ("slurm",),
    "constraint": ("slurm",),
    "chunk": ("slurm",),
    "jobs": ("slurm",),
    "setup": ("slurm",),
    "address": ("ray",),
    "resources": ("ray",),
}
"""The settings of `[launcher]` that only some kinds read."""


class LauncherSettings(_Section):
    """Where runs go: the devices of this host, or a cluster. Not part of what a run does, nor of its keys."""

    kind: Literal["local", "slurm", "ray"] = "local"
    device: Devices = "auto"  # as --device
    per_device: bool = False  # each device runs the whole plan
    parallel: Parallel = "auto"  # runs at one time on a host
    partition: Word | None = None
    account: Word | None = None
    time: Seconds | None = None  # of one job
    gres: Word | None = None  # of one job: gpu:h100:1
    constraint: Word | None = None
    chunk: Annotated[int, Field(ge=1, le=10_000)] = 50  # runs of one job, done one after the other
    jobs: Annotated[int, Field(ge=1, le=100_000)] | None = None  # at one time; None for as many as the cluster allows
    setup: list[Command] = []  # shell commands before the runs of a job
    address: Word | None = None
    resources: Resources = {}  # of one run, beside its GPU

    @model_validator(mode="after")
    def _is_read(self) -> LauncherSettings:
        """Refuse settings of clusters where nothing says that there is one; a kind that is named may be overridden."""
        if "kind" not in self.model_fields_set:
            given = [name for name in _OF_CLUSTERS if name in self.model_fields_set]
            if given:
                kinds = " or ".join(
                    f'"{kind}"' for kind in _CLUSTERS if kind in sum((_OF_CLUSTERS[n] for n in given), ())
                )
                raise ValueError(f"{', '.join(given)}: read only with kind = {kinds}; set it, or remove them")
        return self


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
    launcher: LauncherSettings = LauncherSettings()

    def as_json(self) -> dict[str, Any]:
        """The configuration, defaults filled in, as a JSON object.

        Where data lie and runs go is the user's own business: paths, accounts, addresses, commands with secrets.
        """
        return {name: _plain(value) for name, value in self if name not in ("data", "launcher")}

    @property
    def protocol(self) -> Protocol:
        """The part of the configuration that a run needs and results are keyed by."""
        measure = self.measure.model_dump()
        measure["min_window_s"] = measure.pop("min_window")
        for name in ("repeats", "order", "target_interval", "max_repeats", "time_budget"):
            del measure[name]  # how many runs there are, and in which order, is not part of what one does
        return Protocol(**measure, device_memory_bytes=self.limits.device_memory, data_root=self.data.root)


def _plain(value: Any) -> Any:
    """A checked value as JSON has it: entries of catalogs as they are written, what is not given left out."""
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in value if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Choice) else value


MAX_FILE_BYTES = 1 << 20


def load_config(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and check a configuration file.

    Args:
        path: A TOML file; its stem is the name of the configuration unless it gives one.
        overrides: Each `section.key=value`, as given to `--set`; the value is TOML, or a plain word.

    Raises:
        ConfigError: With every error in the file and the overrides.
    """
    place = str(path)
    try:
        values = _parse(_read(path))
    except OSError as error:
        raise ConfigError([f"{place}: {error.strerror}. {_configs_nearby(path)}"]) from error
    except ConfigError as error:
        raise ConfigError([f"{place}: {fault}" for fault in error.faults]) from error
    values.setdefault("name", name_of(path.stem))
    faults = [fault for override in overrides if (fault := _override(values, override))]
    if faults:
        raise ConfigError(faults)
    return check_config(values, place, [override.partition("=")[0].strip() for override in overrides])


def _read(path: Path) -> str:
    """The text of a file. Raises OSError or ConfigError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"larger than {MAX_FILE_BYTES >> 20} MiB, the limit for a configuration"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"byte {error.start} is not valid UTF-8 text; save the file as UTF-8"]) from error


def _parse(text: str) -> dict[str, Any]:
    """The values of TOML. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["not valid TOML: nested too deeply"]) from error
    except ValueError as error:  # Python refuses to read such numbers
        raise ConfigError(["not valid TOML: a number has thousands of digits"]) from error


def check_config(values: Mapping[str, Any], place: str, overridden: Sequence[str] = ()) -> SweepConfig:
    """Check values that were read from `place`, except the keys `overridden`. Raises ConfigError with every error."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_fault(place, overridden, details) for details in error.errors()]) from error
    except RecursionError as error:
        raise ConfigError([f"{place}: nested too deeply"]) from error


def _override(values: dict[str, Any], override: str) -> str | None:
    """Set one value in place; returns the error message, if there is one."""
    keys, equals, text = override.partition("=")
    *sections, last = keys.strip().split(".")
    if not equals or not last or not all(sections):
        return f"--set {override}: write section.key=value, like grid.batch_size=[64]"
    target: Any = values
    for section in sections:
        target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return f"--set {override}: {section} is not a section"
    try:
        target[last] = _parse(f"value = {text.strip()}")["value"]
    except ConfigError as error:
        if text.strip()[:1] in ("[", "{", '"', "'"):
            return f"--set {override[:200]}: {error}"
        target[last] = text.strip()
    return None


def _fault(place: str, overridden: Sequence[str], details: ErrorDetails) -> str:
    """One line about one error."""
    parts = [part for part in details["loc"] if isinstance(part, int) or _is_key(part)]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    unknown = details["type"] == "extra_forbidden"  # of --set a.b=1 it is a that is unknown
    if any(
        where == key or where.startswith((f"{key}.", f"{key}[")) or (unknown and key.startswith(f"{where}."))
        for key in overridden
    ):
        place = "--set"
    prefix = f"{place}: {where}: " if where else f"{place}: "
    given = shown(details["input"])
    if unknown:
        key, allowed = str(details["loc"][-1]), _keys_beside([*details["loc"]])
        return f'{prefix}unknown key "{key}". {nearest_sentence(nearest(key, allowed))}Allowed: {", ".join(allowed)}'
    if details["type"] == "missing":
        return f"{prefix}required, but missing"
    message = phrase(details["type"], details.get("ctx", {}), details["msg"]).rstrip(".")
    if details["type"] in ("list_type", "model_type"):  # a section: its header shows which of the two it is
        section = f"[{details['loc'][-1]}]"
        message += f", written under {f'[{section}]' if details['type'] == 'list_type' else section}"
    names_it = message.startswith(given) or (given[0] == '"' and given in message)
    told = f"{prefix}{message}" if names_it else f"{prefix}{message}; given {given}"
    if details["type"] == "literal_error" and isinstance(details["input"], str):
        allowed = re.findall(r"'([^']*)'", message)
        told += f". {nearest_sentence(nearest(details['input'], allowed))}".rstrip(". ")
    return told


def _is_key(part: str | int) -> bool:
    """Whether a part of pydantic's location is a key of the file (not a name of one of its own types)."""
    return isinstance(part, str) and part.isidentifier() and part not in ("tuple", "list", "none", "nullable")


def _keys_beside(parts: Sequence[str | int]) -> list[str]:
    """The keys allowed where the last of `parts` stands."""
    section: type[BaseModel] = SweepConfig
    for part in parts[:-1]:
        section = _SECTIONS.get(str(part), section)
    return list(section.model_fields)


_SECTIONS: dict[str, type[BaseModel]] = {
    "grid": Grid,
    "include": Include,
    "exclude": Exclude,
    "measure": Measure,
    "limits": Limits,
    "data": Data,
    "launcher": LauncherSettings,
}


def _configs_nearby(path: Path) -> str:
    names = sorted(str(item) for folder in {path.parent, Path("configs")} for item in folder.glob("*.toml"))
    names = [name for name in names if name != "pyproject.toml"]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{nearest_sentence(nearest(str(path), names))}Available: {', '.join(names[:8])}{more}" if names else ""


__all__ = ["Exclude", "Grid", "Include", "LauncherSettings", "SweepConfig", "check_config", "load_config"]
