"""Reading `PYTORCH_CUDA_ALLOC_CONF` and `PYTORCH_ALLOC_CONF`, with every fault named; free of torch.

Source: `AcceleratorAllocatorConfig::parseArgs` in `c10/core/AllocatorConfig.cpp` (torch 2.15) and `CUDAAllocatorConfig`
in `c10/cuda/CUDAAllocatorConfig.cpp`. What differs between the versions of torch supported here:

* `large_segment_size_mb` and `per_process_memory_fraction` are not options of torch 2.6 ("Unrecognized
  CachingAllocator option"); the sizes they default to (20 MiB, everything) are the fixed ones there.
* `max_split_size_mb` and `max_non_split_rounding_mb` of 20 are refused by torch 2.6 ("must be > 20") and accepted by
  2.15 (">= large_segment_size_mb").
* `roundup_power2_divisions:[..,16:8,>:4]`: in torch 2.6 the `>` also overwrites the interval named last (here 16), in
  2.11 and newer it starts behind it; see `rest_overwrites` (pytorch pull request 165304).

Numbers are read as C++'s `stoull` and `stod` do: what follows the leading digits is ignored. Which environment variable
is read is not decided here: see `estimators/memory_settings.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from bench.errors import ConfigError, nearest, nearest_sentence
from bench.estimators.allocator.config import MIB, MIN_LARGE_BYTES, ROUNDUP_INTERVALS, AllocatorConfig


def parse_allocator_config(
    text: str, base: AllocatorConfig | None = None, *, rest_overwrites: bool = False, where: str = "allocator settings"
) -> AllocatorConfig:
    """Read a value of `PYTORCH_CUDA_ALLOC_CONF` or `PYTORCH_ALLOC_CONF`.

    Args:
        text: For example `max_split_size_mb:128,expandable_segments:True`.
        base: Settings to start from: those of the device (capacity, total, addresses) and of the version (ties).
        rest_overwrites: Read `>` in `roundup_power2_divisions` as torch 2.6 does.
        where: What holds the text, for the messages: the variable's name.

    Returns:
        The settings, in the order in which they stand, so that of two of a kind the last one counts; options that
        concern pinned host memory or locking are accepted and change nothing.

    Raises:
        ConfigError: With one line for each fault: unknown option, value out of range, what cannot be replayed.
    """
    config = base or AllocatorConfig()
    faults: list[str] = []
    options = list(_split_options(text, faults, where))
    for key, value in sorted(options, key=lambda option: option[0] != "large_segment_size_mb"):
        try:
            config = _apply(config, key, value)
            if rest_overwrites and key == "roundup_power2_divisions":
                config = _overwrite_last(config, value)
        except ValueError as fault:
            faults.append(f"{where}: {key}:{value}: {fault}")
    if faults:
        raise ConfigError(faults)
    return config


def _split_options(text: str, faults: list[str], where: str) -> Iterator[tuple[str, str]]:
    """Keys and values, in order; blanks count for nothing (`ConfigTokenizer`)."""
    known = [*_OPTIONS, *_WITHOUT_EFFECT]
    for option in re.findall(r"[^,\[]+(?:\[[^\]]*\]?)?[^,]*", re.sub(r"\s", "", text)):
        key, colon, value = option.partition(":")
        if not colon or not value:
            name, _, rest = re.sub(r"[=;]", ":", option).partition(":")
            near = nearest_sentence(_with_value(nearest(name, known) if rest else [], rest))
            faults.append(
                f'{where}: "{option}" is not an option; write key:value, separated by commas. {near}'.rstrip(". ")
            )
        elif key in _OPTIONS or key in _WITHOUT_EFFECT:
            yield key, value
        else:
            near = nearest_sentence(_with_value(nearest(key, known), value))
            faults.append(f'{where}: unknown option "{key}". {near}Available: {", ".join(sorted(_OPTIONS))}')


def _with_value(keys: list[str], value: str) -> list[str]:
    """The options that may have been meant, ready to be written, with the value given where it can be one."""
    return [_correct(key, value) for key in keys]


def _correct(key: str, value: str) -> str:
    if key in _BOOLEANS:
        return f"{key}:{_meant(value)}"
    return f"{key}:{value}" if value else key


def _meant(value: str) -> str:
    """`True` or `False`, whichever a value that is neither was most likely to say."""
    return "True" if value.casefold()[:4] in ("true", "1", "yes", "on", "t", "y") else "False"


def _apply(config: AllocatorConfig, key: str, value: str) -> AllocatorConfig:
    change = _OPTIONS.get(key)
    return replace(config, **change(config, value)) if change else config


def _large_segment(config: AllocatorConfig, value: str) -> dict[str, Any]:
    size = _integer(value) * MIB
    if size <= MIN_LARGE_BYTES:
        raise ValueError("must be above 10")
    return {"large_segment_bytes": size, "max_non_split_rounding_bytes": size}


def _at_least_a_segment(name: str) -> Callable[[AllocatorConfig, str], dict[str, Any]]:
    def change(config: AllocatorConfig, value: str) -> dict[str, Any]:
        size = _integer(value) * MIB
        if size < config.large_segment_bytes:
            raise ValueError(f"must be at least {config.large_segment_bytes // MIB}, the size of a large segment")
        return {name: size}

    return change


def _share(name: str, *, ends: bool) -> Callable[[AllocatorConfig, str], dict[str, Any]]:
    def change(config: AllocatorConfig, value: str) -> dict[str, Any]:
        number = re.match(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value)
        share = float(number[0]) if number else math.nan
        if not (0 <= share <= 1 if ends else 0 < share < 1):
            raise ValueError(f"must be between 0 and 1{'' if ends else ', both excluded'}")
        return {name: share}

    return change


def _refused(config: AllocatorConfig, value: str) -> dict[str, Any]:
    raise ValueError("this option changes when torch runs out of memory, which is not modelled; remove it")


def _boolean(config: AllocatorConfig, value: str) -> dict[str, Any]:
    if value not in ("True", "False"):
        raise ValueError(f"must be True or False. Nearest: expandable_segments:{_meant(value)}")
    return {"expandable_segments": value == "True"}


def _backend(config: AllocatorConfig, value: str) -> dict[str, Any]:
    if value in ("cudaMallocAsync", "hipMallocAsync"):
        raise ValueError("only the native backend can be simulated")
    if value != "native":
        near = nearest_sentence(nearest(value, ["backend:native", "backend:cudaMallocAsync"])).rstrip(". ")
        raise ValueError(f"must be native or cudaMallocAsync. {near}".rstrip(". "))
    return {}


def _roundup(config: AllocatorConfig, value: str) -> dict[str, Any]:
    """Divisions, as one number or a list of intervals in MiB (`parseRoundUpPower2Divisions`)."""
    if not value.startswith("["):
        if not _is_power_of_two(_integer(value)):
            raise ValueError("must be a power of two")
        return {"roundup_power2_divisions": (_integer(value),) * ROUNDUP_INTERVALS}
    if not value.endswith("]"):
        raise ValueError("the list has no closing bracket")
    divisions, last, first = list(config.roundup_power2_divisions or (0,) * ROUNDUP_INTERVALS), 0, True
    for entry in value[1:-1].split(","):
        bound, _, number = entry.partition(":")
        count = _integer(number)
        if count and not _is_power_of_two(count):
            raise ValueError(f'"{entry}": divisions must be a power of two, or 0 for none')
        if bound == ">":
            divisions[last + 1 :] = [count] * (ROUNDUP_INTERVALS - last - 1)
            continue
        if not _is_power_of_two(_integer(bound)):
            raise ValueError(f'"{entry}": an interval must begin at a power of two in MiB')
        last = min(_integer(bound).bit_length() - 1, ROUNDUP_INTERVALS - 1)
        if first:
            divisions[:last], first = [count] * last, False
        divisions[last] = count
    return {"roundup_power2_divisions": tuple(divisions)}


def _overwrite_last(config: AllocatorConfig, value: str) -> AllocatorConfig:
    """Give the interval named last the value behind it, if the list has a `>` (`CUDAAllocatorConfig` of torch 2.6)."""
    named = re.findall(r"(\d+):\d+,>:(\d+)\]$", value)
    if not named:
        return config
    divisions = list(config.roundup_power2_divisions)
    divisions[min(int(named[0][0]).bit_length(), ROUNDUP_INTERVALS) - 1] = int(named[0][1])
    return replace(config, roundup_power2_divisions=tuple(divisions))


def _integer(text: str) -> int:
    number = re.match(r"[+-]?\d+", text)
    if not number:
        raise ValueError(f'"{text}" is not a whole number')
    return int(number[0]) % (1 << 64)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


_OPTIONS: dict[str, Callable[[AllocatorConfig, str], dict[str, Any]]] = {
    "large_segment_size_mb": _large_segment,
    "max_split_size_mb": _at_least_a_segment("max_split_bytes"),
    "max_non_split_rounding_mb": _at_least_a_segment("max_non_split_rounding_bytes"),
    "roundup_power2_divisions": _roundup,
    "garbage_collection_threshold": _share("garbage_collection_threshold", ends=False),
    "per_process_memory_fraction": _share("memory_fraction", ends=True),
    "expandable_segments": _boolean,
    "backend": _backend,
    "expandable_segments_reserve": _refused,
    "expandable_segments_reserve_by_class": _refused,
    "throw_on_cudamalloc_oom": _refused,
}
_BOOLEANS = frozenset(
    {
        "expandable_segments",
        "graph_capture_record_stream_reuse",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
    }
)
