"""Why a process that needs torch does not start: what torch says, and the environment variable that is to blame.

Asked in plain interpreters, by hand and one at a time: that the machinery which starts processes fails is what there
is to explain, and each is asked in an environment of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import nearest
from bench.interpreters import run_python

READ_BY_TORCH = (
    *("TORCH", "PYTORCH", "CUDA", "CUBLAS", "CUDNN", "CUTLASS", "NVIDIA", "NCCL", "DISABLE_ADDMM", "HIP", "ROC", "HSA"),
    *("MIOPEN", "ATEN", "C10", "TRITON", "OMP", "GOMP", "KMP", "MKL", "ONEDNN", "DNNL", "KINETO", "PYTHON", "LD_"),
)
"""Beginnings of the names of environment variables that torch and the libraries below it read."""

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
ALLOCATOR_WORDS = (
    *("backend", "native", "cudaMallocAsync", "True", "False", "expandable_segments", "expandable_segments_reserve"),
    *("expandable_segments_reserve_by_class", "garbage_collection_threshold", "graph_capture_record_stream_reuse"),
    *("large_segment_size_mb", "max_non_split_rounding_mb", "max_split_size_mb", "per_process_memory_fraction"),
    *("pinned_free_catch_all", "pinned_max_cached_size_mb", "pinned_max_round_threshold_mb"),
    *("pinned_num_register_threads", "pinned_reserve_segment_size_mb", "pinned_use_background_threads"),
    *("pinned_use_cuda_host_register", "pinned_use_hip_host_register", "release_lock_on_cudamalloc"),
    *("release_lock_on_hipmalloc", "roundup_power2_divisions", "throw_on_cudamalloc_oom"),
)
"""What the allocator's variables may hold beside numbers (c10/core/AllocatorConfig.cpp, CUDAAllocatorConfig.cpp)."""

_MOST_WORDS = 300
_ALIKE = 0.6  # of a word that may have been meant
_TRIES = 8  # of variables, one by one, where torch does not say which one it means


@dataclass(frozen=True, slots=True)
class Blame:
    """An environment variable that prevents torch from starting: without it, torch starts.

    Attributes:
        variable: Its name.
        value: What it holds.
        nearest: What it may have been meant to hold; None if nothing valid is near.
    """

    variable: str
    value: str
    nearest: str | None = None

    @property
    def remedy(self) -> str:
        """What to do, as a sentence."""
        near = f'Nearest: {self.variable}="{self.nearest}". ' if self.nearest else ""
        return f"{near}Correct it, or unset it: unset {self.variable}"


def start_fault(module: str, timeout_s: float = 120.0) -> str | None:
    """Why a process that imports `module` does not start: what torch says, the variable to blame, and the remedy.

    Returns:
        One line; None if it does start.
    """

    def ask(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str] | None:
        try:
            asked = run_python(module, environment=environment, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return asked if asked.returncode else None

    failed = ask(os.environ)
    if failed is None:
        return None
    said = last_words(failed.stderr).removeprefix("ValueError: ").strip() or f"exit code {failed.returncode}"
    blame = find_blame(failed.stderr, lambda environment: ask(environment) is None)
    if blame is None:
        return f"a worker process cannot start: {said}"
    return f'{blame.variable}="{blame.value}" prevents torch from starting: {said}. {blame.remedy}'


def last_words(printed: str) -> str:
    """What a process said of its end, in one line: its exception, or C++'s; empty if it said nothing."""
    lines = printed.strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        raised = re.match(r"(?:[\w.]*(?:Error|Exception|Interrupt)(?::|$)|\s+what\(\):)\s*", lines[index])
        if raised:
            said = " ".join([lines[index].strip(), *(line.strip() for line in lines[index + 1 : index + 4])])
            said = re.sub(r"^what\(\):\s*", "", said).partition(" Exception raised from ")[0].partition(" frame #")[0]
            said = re.sub(r"^\S.{,80} INTERNAL ASSERT FAILED at .{,300}? report a bug to PyTorch\. ", "", said)
            return re.split(r"(?<=[a-z])\. (?=[A-Z])", said)[0].rstrip(".")[:_MOST_WORDS]
    return lines[-1].strip().rstrip(".")[:_MOST_WORDS] if lines else ""


def find_blame(said: str, starts: Callable[[Mapping[str, str]], bool]) -> Blame | None:
    """The environment variable for which torch fails: torch does not where it is taken away.

    Args:
        said: All that torch printed; what it names is tried first.
        starts: Whether torch does in an environment; some seconds each time.
    """
    suspects = [name for name in os.environ if name.startswith(READ_BY_TORCH) and name != "PYTHONPATH"]
    named = [name for name in suspects if name in said or any(word in said for word in _words(os.environ[name]))]
    order = [*sorted(named, key=lambda name: name not in said), *(name for name in suspects if name not in named)]
    if not order or (not named and not starts(_without(order))):
        return None
    for number, name in enumerate(order[:_TRIES]):
        if number == len(named) and number and not starts(_without(order)):
            return None
        if starts(_without([name])):
            return Blame(name, os.environ[name], _correct(name, os.environ[name], said))
    return None


def _without(names: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def _words(value: str) -> list[str]:
    """What of a value may be quoted in a message."""
    return [word for word in re.split(r"[^\w.]+", value) if len(word) > 2]


def _correct(name: str, value: str, said: str) -> str | None:
    """The value with what is wrong in it replaced: by the allocator's words, or else by those that torch printed."""
    if name in _ALLOCATOR:
        meant, allowed = value.replace("=", ":").replace(";", ","), set(ALLOCATOR_WORDS)
    else:
        meant, allowed = value, set(re.findall(r"[\w.]+", said.replace(value, "")))
    for word in _words(meant):
        if word not in allowed and not word[0].isdigit():
            meant = meant.replace(word, next(iter(nearest(word, allowed, cutoff=_ALIKE)), word))
    return meant if meant != value else None
