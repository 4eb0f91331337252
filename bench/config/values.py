"""The values of a configuration: how each is written, and what is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from bench.catalog import Kind, check_choice, matching, normalised, parse_choices
from bench.errors import BenchError, nearest, nearest_sentence
from bench.launchers.faults import ALLOCATOR_WORDS
from bench.records import ACCELERATORS, MAX_BATCH_SIZE, MAX_IMAGE_SIZE, Choice
from bench.units import MIB, parse_bytes, parse_seconds

MAX_SECONDS = 30 * 86_400.0
MAX_BYTES = 1 << 60
MAX_AXIS_VALUES = 10_000
MAX_TARGET_FRAC = 0.5
AUTO = "auto"


def shown(value: Any) -> str:
    """A value as it stands in a message: text in quotes, long ones cut."""
    try:
        text = _as_toml(value)
    except (ValueError, RecursionError):  # Python refuses to print numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_as_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    return str(value)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _choices(kind: Kind, value: Any) -> tuple[Choice, ...]:
    """Catalog entries written `name`, `name:key=value` or `{ name = ..., key = ... }`; a name may be a pattern."""
    if isinstance(value, str):
        try:
            return tuple(parse_choices(kind, value))
        except BenchError as error:
            raise ValueError(str(error)) from error
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        one = f"an {kind}" if kind == "optimizer" else f"a {kind}"
        raise ValueError(f'write {one} as "name" or {{ name = "name", setting = value }}')
    settings = {key: item for key, item in value.items() if key != "name"}
    try:
        names = matching(kind, value["name"]) if set(value["name"]) & set("*?") else [value["name"]]
    except BenchError as error:
        raise ValueError(str(error)) from error
    found = [Choice.of(name, settings) for name in names]
    if faults := [fault for choice in found for fault in check_choice(kind, choice)]:
        raise ValueError("; ".join(faults))
    return tuple(normalised(kind, choice) for choice in found)


def _one_of(allowed: Iterable[str]) -> Callable[[Any], Any]:
    names = tuple(allowed)

    def check(value: Any) -> Any:
        if value in names and isinstance(value, str):
            return value
        near = nearest_sentence(nearest(value, names)) if isinstance(value, str) else ""
        raise ValueError(f"{shown(value)} is not allowed. {near}Allowed: {', '.join(names)}")

    return check


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"must be a whole number from {low} to {high}")
    return value


def _named_whole(value: Mapping[str, Any], name: str, low: int, high: int) -> int:
    try:
        return _whole(value[name], low, high)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _expand_range(value: Mapping[str, Any], low: int, high: int) -> list[int]:
    """The numbers of `{ pow2 = [a, b] }` or `{ from, to, step }`, both ends included."""
    if set(value) == {"pow2"} and isinstance(value["pow2"], list) and len(value["pow2"]) == 2:
        first, last = (_whole(item, low, high) for item in value["pow2"])
        if first > last or first & (first - 1) or last & (last - 1):
            raise ValueError("pow2 takes two powers of two, the smaller first: { pow2 = [16, 4096] }")
        return [1 << exponent for exponent in range(first.bit_length() - 1, last.bit_length())]
    if set(value) == {"from", "to", "step"}:
        first, last, step = (_named_whole(value, name, low, high) for name in ("from", "to", "step"))
        if first > last:
            raise ValueError("from must not be larger than to")
        if (last - first) // step >= MAX_AXIS_VALUES:
            raise ValueError(f"holds more than {MAX_AXIS_VALUES:,} values")
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
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
        raise ValueError('must be a duration above 0 and up to 30 days, like "90 s" or "2 min"')
    return float(seconds)


def read_bytes(value: Any) -> int:
    """An amount of memory in bytes, from a number or a text such as `8 GiB`. Raises ValueError."""
    count = parse_bytes(value) if isinstance(value, str) else value
    if isinstance(count, bool) or not isinstance(count, int) or not MIB <= count < MAX_BYTES:
        raise ValueError(
            'must be an amount of memory from 1 MiB up to 1 EiB, like "8 GiB"; a number without a unit is in bytes'
        )
    return count


def _target_interval(value: Any) -> float | str:
    if value == AUTO or (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_TARGET_FRAC
    ):
        return value if value == AUTO else float(value)
    near = nearest_sentence(nearest(value, [AUTO])) if isinstance(value, str) else ""
    raise ValueError(
        f"{shown(value)} is not a valid half-width of an interval. {near}Write it as a fraction above 0 and up to "
        f'{MAX_TARGET_FRAC:g} (0.01 for ±1 %), or "{AUTO}"'
    )


MAX_PARALLEL = 1024
_DEVICE = re.compile(r"(cuda|xpu|cpu):\d{1,4}|mps:0|(GPU|MIG)-[0-9A-Za-z/-]+")
DEVICES = "auto, cpu, cuda, cuda:0, xpu, xpu:0, mps, all, or several: MIG-...,MIG-... or cuda:0,cuda:2"
"""What a sweep may be asked to run on. `cpu:0,cpu:1` are worker slots on the CPU that play devices, for tests."""


def read_devices(value: Any) -> str:
    """A request for devices in its one spelling: a word, or parts with commas between. Raises ValueError."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    words = ("auto", "cpu", *ACCELERATORS, "all")
    wrong = [part for part in parts if part not in words and not _DEVICE.fullmatch(part)]
    if not parts or wrong:
        near = nearest_sentence(nearest(wrong[0], words)) if wrong else ""
        raise ValueError(f"unknown {', '.join(map(shown, wrong)) or shown(value)}. {near}Allowed: {DEVICES}")
    if len(parts) > 1 and (alone := [part for part in parts if part in words]):
        raise ValueError(f"{alone[0]} stands alone, and {shown(value)} is a list. Allowed: {DEVICES}")
    if twice := [part for part in dict.fromkeys(parts) if parts.count(part) > 1]:
        raise ValueError(f"{', '.join(twice)}: named twice in {shown(value)}")
    kinds = {"cuda" if part.startswith(("GPU-", "MIG-")) else part.partition(":")[0] for part in parts}
    if "cpu" in kinds and len(kinds) > 1:
        raise ValueError(f"{shown(value)} names both GPUs and slots on the CPU; a sweep uses one or the other")
    if len(kinds) > 1:
        raise ValueError(f"{shown(value)} names GPUs of several kinds, and one torch uses one kind")
    return ",".join(parts)


def read_parallel(value: Any) -> int | str:
    """How many runs at one time: a number, or `auto`. Raises ValueError."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number == AUTO or (isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_PARALLEL):
        return number
    raise ValueError(f'{shown(value)} is not a number of runs: write 1 to {MAX_PARALLEL}, or "{AUTO}"')


def _word(value: Any) -> str:
    """Text of one line that begins with no hyphen, so that it is never taken for an option."""
    if isinstance(value, str) and value.strip() and value.isprintable() and not value.startswith("-"):
        return value.strip()
    raise ValueError(f'{shown(value)} is not valid: write text of one line, such as "gpu"')


def _command(value: Any) -> str:
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    raise ValueError(f'{shown(value)} is not a shell command of one line, such as "module load cuda"')


def _resources(value: Any) -> dict[str, float]:
    """Amounts by name. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is not a table of amounts: write {{ name = 1 }}")
    wrong = [
        f"{name} = {shown(amount)}"
        for name, amount in value.items()
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1e6
    ]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: an amount is a number above 0 and below a million")
    if own := [name for name in ("GPU", "memory", "object_store_memory") if name in value]:
        raise ValueError(f"{', '.join(own)}: a run has one GPU, and no request for memory; remove it")
    if parts := [f"{name} = {shown(amount)}" for name, amount in value.items() if amount > 1 and amount != int(amount)]:
        raise ValueError(f"{', '.join(parts)}: an amount above 1 is a whole number")
    return {str(name): float(amount) for name, amount in value.items()}


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("needs at least one value")
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


def name_of(stem: str) -> str:
    """The name that a file's stem gives a configuration: up to 80 characters, those not allowed replaced by `_`."""
    name = "".join(character if character in _NAME_CHARACTERS else "_" for character in stem)[:80]
    return f"_{name[1:]}" if name[:1] in (".", "-") else name or "_"


_NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

Name = Annotated[str, PlainValidator(_name)]
Seconds = Annotated[float, PlainValidator(_seconds)]
TargetInterval = Annotated[float | Literal["auto"], PlainValidator(_target_interval)]
Bytes = Annotated[int, PlainValidator(read_bytes)]
Devices = Annotated[str, PlainValidator(read_devices)]
Parallel = Annotated[int | Literal["auto"], PlainValidator(read_parallel)]
Word = Annotated[str, PlainValidator(_word)]
Command = Annotated[str, PlainValidator(_command)]
Resources = Annotated[dict[str, float], PlainValidator(_resources)]
if TYPE_CHECKING:
    BatchSizes = tuple[int, ...]
    ImageSizes = tuple[int, ...]
    Accumulations = tuple[int, ...]
else:
    BatchSizes, ImageSizes = _numbers(1, MAX_BATCH_SIZE), _numbers(1, MAX_IMAGE_SIZE)
    Accumulations = _numbers(1, MAX_BATCH_SIZE)


def choices(kind: Kind) -> Any:
    """The type of an axis of catalog entries: one or a list of names and patterns, distinct, each checked."""
    item = Annotated[Any, PlainValidator(functools.partial(_choices, kind))]
    return Annotated[list[item], BeforeValidator(_as_list), AfterValidator(lambda parts: _distinct(sum(parts, ())))]


def words(literal: Any) -> Any:
    """The type of an axis whose values are the words of a `Literal`: one or a list, distinct."""
    item = Annotated[str, PlainValidator(_one_of(get_args(literal)))]
    return Annotated[list[item], BeforeValidator(_as_list), AfterValidator(_distinct)]


def read_compile(value: Any) -> str:
    """A value of the axis `compile` as cases have it: `false`, `true` or `true:budget=0.5`. Raises ValueError."""
    text = str(value).lower() if isinstance(value, bool) else value
    if text in ("false", "true"):
        return str(text)
    found = _COMPILED.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 0 <= float(found[1]) <= 1:
        near = nearest_sentence(nearest(text, ("true", "false", "true:budget=0.5"))) if isinstance(text, str) else ""
        raise ValueError(
            f"{shown(value)} is not allowed. {near}Allowed: false, true, or "
            '"true:budget=B", where B is inductor\'s activation_memory_budget, from 0 to 1'
        )
    return f"true:budget={float(found[1]):g}"


_COMPILED = re.compile(r"true:budget=(\d+(?:\.\d*)?|\.\d+)")


def read_allocator(value: Any) -> str:
    """A value of the axis `allocator`, as cases have it. Raises ValueError.

    Only the form and the names are checked, and what the run's process could not set: torch's own words on the values
    come with the estimate and the run.
    """
    if value in ("default", "expandable"):
        return str(value)
    if not isinstance(value, str) or ":" not in value:
        near = nearest_sentence(nearest(value, ("default", "expandable"))) if isinstance(value, str) else ""
        raise ValueError(
            f"{shown(value)} is not allowed. {near}Allowed: default, expandable, or settings as in PYTORCH_ALLOC_CONF, "
            'such as "max_split_size_mb:128"'
        )
    for item in filter(None, value.replace(" ", "").split(",")):
        name = item.partition(":")[0]
        if name == "backend":
            raise ValueError(
                "backend is chosen when torch is loaded, before a case begins; set PYTORCH_ALLOC_CONF in the "
                "environment of the command instead"
            )
        if ":" in item and name[:1].isalpha() and name not in ALLOCATOR_WORDS:
            near = nearest_sentence(nearest(name, ALLOCATOR_WORDS))
            raise ValueError(f"{shown(value)}: torch's allocator has no setting {shown(name)}. {near}".rstrip())
    return value.replace(" ", "")


def _one_or_more(read: Callable[[Any], str]) -> Any:
    item = Annotated[str, PlainValidator(read)]
    return Annotated[list[item], BeforeValidator(_as_list), AfterValidator(_distinct)]


if TYPE_CHECKING:
    Compiles = tuple[str, ...]
    Allocators = tuple[str, ...]
else:
    Compiles, Allocators = _one_or_more(read_compile), _one_or_more(read_allocator)

Patterns = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)]
