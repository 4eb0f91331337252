"""A sweep's configuration: TOML, checked whole before any device is touched.

Every fault of a file is reported at once, each with its place, what was given, what is allowed and the nearest match.
Axes take one value, a list, or (whole numbers) ranges: `{ pow2 = [16, 4096] }`, `{ from = 32, to = 256, step = 32 }`.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from bench import catalog
from bench.catalog import Kind, check_choice, normalise, parse_choice
from bench.errors import BenchError, ConfigError, nearest, nearest_sentence
from bench.records import AXES, Choice, InputPath, MemoryFormat, Precision, Protocol
from bench.units import parse_bytes, parse_seconds

MAX_BATCH_SIZE = 1 << 24
MAX_IMAGE_SIZE = 1 << 14


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _choice(kind: Kind, value: Any) -> Choice:
    """A catalog entry written `name`, `name:key=value` or `{ name = ..., key = ... }`."""
    if isinstance(value, str):
        try:
            return parse_choice(kind, value)
        except BenchError as error:
            raise ValueError(str(error)) from error
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f'write a {kind} as "name" or {{ name = "name", setting = value }}')
    choice = Choice.of(value["name"], {key: item for key, item in value.items() if key != "name"})
    if faults := check_choice(kind, choice):
        raise ValueError("; ".join(faults))
    return choice if catalog.is_external(kind, choice.name) else normalise(catalog.entry(kind, choice.name), choice)


def _one_of(allowed: Iterable[str]) -> Callable[[Any], Any]:
    names = tuple(allowed)

    def check(value: Any) -> Any:
        if value in names and isinstance(value, str):
            return value
        near = nearest_sentence(nearest(value, names)) if isinstance(value, str) else ""
        raise ValueError(f"{_shown(value)} is not allowed. {near}Allowed: {', '.join(names)}")

    return check


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"must be a whole number from {low} to {high}")
    return value


def _expand_range(value: Mapping[str, Any], low: int, high: int) -> list[int]:
    """The numbers of `{ pow2 = [a, b] }` or `{ from, to, step }`, both ends included."""
    if set(value) == {"pow2"} and isinstance(value["pow2"], list) and len(value["pow2"]) == 2:
        first, last = (_whole(item, low, high) for item in value["pow2"])
        if first > last or first & (first - 1) or last & (last - 1):
            raise ValueError("pow2 takes two powers of two, the smaller first: { pow2 = [16, 4096] }")
        return [1 << exponent for exponent in range(first.bit_length() - 1, last.bit_length())]
    if set(value) == {"from", "to", "step"}:
        first, last, step = (_whole(value[name], low, high) for name in ("from", "to", "step"))
        if first > last:
            raise ValueError("from must not be larger than to")
        return list(range(first, last + 1, step))
    raise ValueError("a range is { pow2 = [16, 4096] } or { from = 32, to = 256, step = 32 }")


def _number_or_range(low: int, high: int, value: Any) -> tuple[int, ...]:
    return tuple(_expand_range(value, low, high)) if isinstance(value, dict) else (_whole(value, low, high),)


def _numbers(low: int, high: int) -> Any:
    """One number, a range, or a list of both, as distinct numbers in the order given."""
    item = Annotated[Any, PlainValidator(functools.partial(_number_or_range, low, high))]
    return Annotated[list[item], BeforeValidator(_as_list), AfterValidator(lambda parts: _distinct(sum(parts, ())))]


def _seconds(value: Any) -> float:
    seconds = parse_seconds(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError('must be a duration above 0, like "90 s" or "2 min"')
    return float(seconds)


def _bytes(value: Any) -> int:
    count = parse_bytes(value) if isinstance(value, str) else value
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise ValueError('must be an amount of memory above 0, like "8 GiB"')
    return count


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must name at least one value")
    return tuple(dict.fromkeys(values))


def _name(value: Any) -> str:
    if (
        not isinstance(value, str)
        or not value
        or len(value) > 80
        or set(value) - set(_NAME_CHARACTERS)
        or value[0] in ".-"
    ):
        raise ValueError("must be 1 to 80 letters, digits, '.', '_' or '-', beginning with a letter, digit or '_'")
    return value


_NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

Seconds = Annotated[float, PlainValidator(_seconds)]
Bytes = Annotated[int, PlainValidator(_bytes)]
BatchSizes = _numbers(1, MAX_BATCH_SIZE)
ImageSizes = _numbers(1, MAX_IMAGE_SIZE)


def _choices(kind: Kind) -> Any:
    item = Annotated[Any, PlainValidator(functools.partial(_choice, kind))]
    return Annotated[list[item], BeforeValidator(_as_list), AfterValidator(_distinct)]


def _words(literal: Any) -> Any:
    item = Annotated[str, PlainValidator(_one_of(get_args(literal)))]
    return Annotated[list[item], BeforeValidator(_as_list), AfterValidator(_distinct)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Grid(_Section):
    """The axes; the plan is their product, in this order, the last one fastest."""

    dataset: _choices("dataset")  # type: ignore[valid-type]
    model: _choices("model")  # type: ignore[valid-type]
    optimizer: _choices("optimizer")  # type: ignore[valid-type]
    batch_size: BatchSizes
    precision: _words(Precision) = ("float32",)  # type: ignore[valid-type]
    memory_format: _words(MemoryFormat) = ("contiguous",)  # type: ignore[valid-type]
    input: _words(InputPath) = ("synthetic",)  # type: ignore[valid-type]
    image_size: ImageSizes | None = None


class Include(_Section):
    """A further grid beside the main one; axes left out are the main grid's. Excludes do not touch it."""

    reason: str = Field(min_length=1)
    dataset: _choices("dataset") | None = None  # type: ignore[valid-type]
    model: _choices("model") | None = None  # type: ignore[valid-type]
    optimizer: _choices("optimizer") | None = None  # type: ignore[valid-type]
    batch_size: BatchSizes | None = None
    precision: _words(Precision) | None = None  # type: ignore[valid-type]
    memory_format: _words(MemoryFormat) | None = None  # type: ignore[valid-type]
    input: _words(InputPath) | None = None  # type: ignore[valid-type]
    image_size: ImageSizes | None = None


_Patterns = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)]


class Exclude(_Section):
    """Cases that are planned as skipped: those that match on every axis named. Words may hold `*` and `?`."""

    reason: str = Field(min_length=1)
    dataset: _Patterns | None = None
    model: _Patterns | None = None
    optimizer: _Patterns | None = None
    batch_size: BatchSizes | None = None
    precision: _Patterns | None = None
    memory_format: _Patterns | None = None
    input: _Patterns | None = None
    image_size: ImageSizes | None = None
    device: _Patterns | None = None

    def matches(self, values: Mapping[str, str | int]) -> bool:
        """Whether a case with these axes (and `device`) is meant."""
        return all(
            values[axis] in wanted if axis in ("batch_size", "image_size")
            else any(fnmatch.fnmatchcase(str(values[axis]), pattern) for pattern in wanted)
            for axis in (*AXES, "device")
            if (wanted := getattr(self, axis)) is not None
        )  # fmt: skip


class Measure(_Section):
    """How each case is measured; see `records.Protocol`."""

    repeats: int = Field(3, ge=1, le=1000)
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


class Limits(_Section):
    """What a run may take before it is ended."""

    run_timeout: Seconds = 300.0
    host_memory: Bytes | None = None  # of a worker on the CPU; 90 % of what is free unless given
    infrastructure_failures: int = Field(3, ge=1, le=1000)  # in a row, before the sweep stops


class Data(_Section):
    """Where data sets lie."""

    root: str | None = None
    fetch: bool = True  # try to download what the grid needs from files and the disk does not have


class SweepConfig(_Section):
    """A whole configuration."""

    name: Annotated[str, PlainValidator(_name)]
    description: str = ""
    grid: Grid
    include: list[Include] = []
    exclude: list[Exclude] = []
    measure: Measure = Measure()
    limits: Limits = Limits()
    data: Data = Data()

    @property
    def protocol(self) -> Protocol:
        """The part of the configuration that a run needs and results are keyed by."""
        measure = self.measure.model_dump()
        measure["min_window_s"] = measure.pop("min_window")
        del measure["repeats"], measure["order"]
        return Protocol(**measure, data_root=self.data.root)


def load_config(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and check a configuration file.

    Args:
        path: A TOML file.
        overrides: `section.key=value` each, as given to `--set`; the value is TOML, or a plain word.

    Raises:
        ConfigError: With every fault of the file and the overrides.
    """
    place = str(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{place}: {error.strerror}. {_configs_nearby(path)}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{place}: not valid TOML: {error}"]) from error
    faults = [fault for override in overrides if (fault := _override(values, override))]
    if faults:
        raise ConfigError(faults)
    return check_config(values, place)


def check_config(values: Mapping[str, Any], place: str) -> SweepConfig:
    """Check values that were read from `place`. Raises ConfigError with every fault."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_fault(place, details) for details in error.errors()]) from error


def _override(values: dict[str, Any], override: str) -> str | None:
    """Set one value in place; returns the fault, if there is one."""
    keys, equals, text = override.partition("=")
    *sections, last = keys.strip().split(".")
    if not equals or not last or not all(sections):
        return f"--set {override}: write section.key=value, like grid.batch_size=[64]"
    target: Any = values
    for section in sections:
        target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return f"--set {override}: {section} is no section"
    try:
        target[last] = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        target[last] = text.strip()
    return None


def _fault(place: str, details: ErrorDetails) -> str:
    """One line about one fault."""
    parts = [part for part in details["loc"] if isinstance(part, int) or _is_key(part)]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    prefix = f"{place}: {where}: " if where else f"{place}: "
    given = _shown(details["input"])
    if details["type"] == "extra_forbidden":
        key, allowed = str(parts[-1]), _keys_beside(parts)
        return f'{prefix}unknown key "{key}". {nearest_sentence(nearest(key, allowed))}Allowed: {", ".join(allowed)}'
    if details["type"] == "missing":
        return f"{prefix}missing; it must be given"
    message = details["msg"].removeprefix("Value error, ")
    return f"{prefix}{message}" if given in message else f"{prefix}{message}; given {given}"


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
    "grid": Grid, "include": Include, "exclude": Exclude, "measure": Measure, "limits": Limits, "data": Data,
}  # fmt: skip


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _configs_nearby(path: Path) -> str:
    names = sorted(str(item) for folder in {path.parent, Path("configs")} for item in folder.glob("*.toml"))
    names = [name for name in names if name != "pyproject.toml"]
    return f"{nearest_sentence(nearest(str(path), names))}There are: {', '.join(names)}" if names else ""
