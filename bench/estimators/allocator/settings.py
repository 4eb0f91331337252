"""Settings of torch's CUDA caching allocator: read from text, every fault named, and the sizes that follow from them.

Free of torch. Sources, named at each rule: `c10/core/AllocatorConfig.h` and `.cpp` (torch 2.15),
`c10/cuda/CUDAAllocatorConfig.h` and `.cpp`, `c10/cuda/CUDACachingAllocator.cpp`. The defaults are the same in all
versions of torch supported here: rounding to 512 B, no limit on splitting, no power-of-two rounding, no expandable
segments, large segments of 20 MiB. Versions also differ in which of several free blocks of the right size is taken
(`tie_rule`). What differs in reading `PYTORCH_CUDA_ALLOC_CONF` and `PYTORCH_ALLOC_CONF` between the versions of torch
supported here:

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
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.errors import ConfigError, nearest, nearest_sentence

MIB = 1 << 20
MIN_BLOCK_BYTES = 512
SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
MIN_LARGE_BYTES = 10 * MIB
ROUND_LARGE_BYTES = 2 * MIB
ROUNDUP_INTERVALS = 16

AddressPolicy = Literal["ascending", "descending", "lowest"]
TieRule = Literal["address", "block_age", "segment_age"]


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """Settings of the allocator and of the device below it. The defaults are torch's, on a device without limit.

    Attributes:
        max_split_bytes: Blocks of this size and above are neither split nor used for smaller requests; None: no limit.
        max_non_split_rounding_bytes: How much larger than the request a block of that size may be.
        roundup_power2_divisions: Steps between powers of two to which requests are rounded, for sizes from 1 MiB up in
            16 intervals of a factor of two each (the last one open); 0 or 1 for the plain rounding to 512 B.
        expandable_segments: Grow one segment a pool and stream in pages instead of asking for ever more segments.
        large_segment_bytes: Segment size for requests above 1 MiB and below 10 MiB.
        garbage_collection_threshold: Share of the allowed memory above which old cached segments are released before a
            new one is asked for; takes effect only below a memory fraction of 1. 0: never.
        memory_fraction: Share of `device_total_bytes` that segments may take in all
            (`torch.cuda.set_per_process_memory_fraction`); 1: no limit.
        rounds_fraction: Whether the fraction's bytes are rounded (half up) rather than cut off. See `rounds_fraction`.
        device_total_bytes: All of the device's memory; needed for a fraction below 1 and for the address range of an
            expandable segment.
        capacity_bytes: Memory free for segments when the process starts (total less the context and other processes);
            None: without limit, so that nothing is ever retried or refused.
        ties: Which of several free blocks of the right size is taken: `address` the lowest, `block_age` the one whose
            record was made first, `segment_age` the lowest in the segment that was made first. See `tie_rule`.
        addresses: Order of the addresses that cudaMalloc hands out: `ascending` and `descending` never return to a
            freed one, `lowest` takes the lowest gap. Of no consequence where age breaks ties.
    """

    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = ()
    expandable_segments: bool = False
    large_segment_bytes: int = 20 * MIB
    garbage_collection_threshold: float = 0.0
    memory_fraction: float = 1.0
    rounds_fraction: bool = True
    device_total_bytes: int | None = None
    capacity_bytes: int | None = None
    ties: TieRule = "segment_age"
    addresses: AddressPolicy = "ascending"

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if self.memory_fraction < 1 and self.device_total_bytes is None:
            raise ConfigError(["allocator: a memory fraction below 1 needs device_total_bytes"])
        if self.ties not in ("address", "block_age", "segment_age"):
            raise ConfigError([f'allocator: ties "{self.ties}" is not one of address, block_age, segment_age'])
        if self.addresses not in ("ascending", "descending", "lowest"):
            raise ConfigError([f'allocator: addresses "{self.addresses}" is not one of ascending, descending, lowest'])

    @property
    def allowed_bytes(self) -> int | None:
        """Limit on all segments by the memory fraction (`setMemoryFraction`), or None."""
        if self.memory_fraction >= 1 or self.device_total_bytes is None:
            return None
        share = self.memory_fraction * self.device_total_bytes
        return math.floor(share + 0.5) if self.rounds_fraction else int(share)

    @property
    def collects_garbage(self) -> bool:
        """Whether cached segments age and are collected (`DeviceCachingAllocator::malloc`)."""
        return self.allowed_bytes is not None and self.garbage_collection_threshold > 0


def round_request(config: AllocatorConfig, size: int) -> int:
    """Bytes of a block for a request of `size` bytes (`DeviceCachingAllocator::round_size`).

    At least 512, else the next multiple of 512; with divisions, and above 512 times their number, the next of as many
    equal steps between powers of two.
    """
    if size < MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    if config.roundup_power2_divisions:
        divisions = _divisions_at(config.roundup_power2_divisions, size)
        if divisions > 1 and size > MIN_BLOCK_BYTES * divisions:
            return _next_division(size, divisions)
    return (size + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES


def _divisions_at(divisions: tuple[int, ...], size: int) -> int:
    """The entry for `size`: the first below 2 MiB, then one a power of two (`roundup_power2_divisions(size)`)."""
    index = max(size.bit_length() - SMALL_BYTES.bit_length(), 0)
    return divisions[min(index, ROUNDUP_INTERVALS - 1)]


def _next_division(size: int, divisions: int) -> int:
    """`size` rounded up to the next division of its power of two (`roundup_power2_next_division`)."""
    floor = 1 << (size.bit_length() - 1)
    if floor == size:
        return size
    step = floor >> (divisions.bit_length() - 1)
    return -(-size // step) * step if step else 2 * floor


def segment_bytes(config: AllocatorConfig, rounded: int) -> int:
    """Bytes of a new segment for a block of `rounded` bytes (`DeviceCachingAllocator::get_allocation_size`)."""
    if rounded <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded < MIN_LARGE_BYTES:
        return config.large_segment_bytes
    return -(-rounded // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def tie_rule(torch_version: str) -> TieRule:
    """How a version of torch chooses between free blocks of the right size, as its allocator was seen to do.

    Up to 2.11 the lowest address goes first (seen on 2.6.0 and 2.11.0). 2.12 gave every block record a counter (seen on
    2.12.0; pytorch pull request 178362), and from 2.13 on every segment has one that its blocks inherit (seen on 2.13.0
    and 2.15.0; pull request 183591), so that the addresses that cudaMalloc returns no longer matter.

    Raises:
        ValueError: The text does not begin with a version.
    """
    version = _version(torch_version)
    if version <= (2, 11):
        return "address"
    return "block_age" if version == (2, 12) else "segment_age"


def _version(torch_version: str) -> tuple[int, int]:
    """Major and minor."""
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    if match is None:
        raise ValueError(f'"{torch_version}" is not a version of torch')
    return int(match[1]), int(match[2])


def rounds_fraction(torch_version: str) -> bool:
    """Whether a version of torch rounds the bytes of a memory fraction, as from 2.13 on (pytorch pull request 179444).

    Read off `setMemoryFraction` in the wheels of 2.6, 2.9, 2.11, 2.12 (cut off) and 2.13, 2.14, 2.15 (rounded).

    Raises:
        ValueError: The text does not begin with a version.
    """
    return _version(torch_version) >= (2, 13)


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
