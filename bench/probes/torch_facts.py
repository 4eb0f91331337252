"""What torch says of itself and of the GPUs, read in a separate process.

`read_torch_facts` starts a Python for it, so that a parent stays free of torch and CUDA: asking
torch whether CUDA works initialises CUDA, which spoils every later fork, and a broken driver can crash or hang whoever
asks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.errors import nearest
from bench.interpreters import python_command

_MARK = "bench-torch-facts:"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    """Torch's build, and what it could do with the GPUs. `error` is set where torch could not even be asked."""

    error: str | None = None
    version: str | None = None
    cuda_version: str | None = None  # of the build; None for a CPU or ROCm build
    hip_version: str | None = None
    arch_list: tuple[str, ...] = ()
    available: bool = False
    device_count: int = 0
    device_names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    uuids: tuple[str, ...] = ()  # bare, as CUDA writes them; empty if this torch or ROCm does not tell
    warning: str | None = None  # what torch warned of while it was asked, where CUDA is not available
    trial_error: str | None = None  # why a small addition on the first GPU failed
    blame: Blame | None = None  # the variable for which torch could not be asked, or the addition failed


def read_torch_facts(timeout_s: float = 120.0) -> TorchFacts:
    """Ask torch in a fresh process; 3 to 10 s, as long as its import takes. Never raises: `error` says what failed."""

    def ask(environment: Mapping[str, str]) -> tuple[TorchFacts, str]:
        try:
            asked = _run(python_command("bench.probes.torch_facts", "print_facts"), environment, timeout_s)
        except subprocess.TimeoutExpired:
            return TorchFacts(error=f"torch did not report its GPUs within {timeout_s:g} s"), ""
        answers = [line for line in asked.stdout.splitlines() if line.startswith(_MARK)]
        if answers:
            facts = parse_facts(answers[-1].removeprefix(_MARK))
            return facts, facts.error or facts.trial_error or ""
        said = last_words(asked.stderr)
        error = f"querying torch for its GPUs failed with exit code {asked.returncode}: {said or 'no message'}"
        return TorchFacts(error=error), asked.stderr or "no message"

    facts, said = ask(os.environ)
    if not said:
        return facts
    return replace(facts, blame=find_blame(said, lambda environment: not ask(environment)[1]))


def start_fault(module: str = "bench.launchers.preload", timeout_s: float = 120.0) -> str | None:
    """Why a process that imports `module` does not start: what torch says, the variable to blame, and the remedy.

    Returns:
        One line; None if it does start.
    """

    def ask(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str] | None:
        try:
            asked = _run(python_command(module), environment, timeout_s)
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


def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A Python of this installation, with what it prints."""
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False, env=environment
    )


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


def parse_facts(text: str) -> TorchFacts:
    """Facts from the JSON that `print_facts` writes."""
    fields: dict[str, Any] = json.loads(text)
    fields["arch_list"] = tuple(fields["arch_list"])
    fields["device_names"] = tuple(fields["device_names"])
    fields["uuids"] = tuple(fields["uuids"])
    fields["capabilities"] = tuple((int(major), int(minor)) for major, minor in fields["capabilities"])
    fields["blame"] = Blame(**fields["blame"]) if fields.get("blame") else None
    return TorchFacts(**fields)


def measure_torch_facts() -> TorchFacts:
    """Ask torch in this process. It initialises CUDA where there is a GPU."""
    try:
        import torch
    except (
        ImportError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a library of the wheel that does not load, or a variable that torch does not take
        return TorchFacts(error=f"torch cannot be imported: {last_words(f'{type(error).__name__}: {error}')}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    build: dict[str, Any] = {
        "version": torch.__version__,
        "cuda_version": torch.version.cuda,
        "hip_version": getattr(torch.version, "hip", None),
        "arch_list": tuple(torch.cuda.get_arch_list()),
        "available": available,
    }
    if not available:
        return TorchFacts(**build, warning="; ".join(_first_line(str(each.message)) for each in caught) or None)
    return TorchFacts(**build, **_measure_devices())


def _measure_devices() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"device_count": torch.cuda.device_count()}
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found["device_count"] = torch.cuda.device_count()  # the driver's word from here on, and not NVML's
        indices = range(found["device_count"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on architectures: `diagnosis` says it better
            found["device_names"] = tuple(torch.cuda.get_device_name(index) for index in indices)
            found["capabilities"] = tuple(torch.cuda.get_device_capability(index) for index in indices)
            found["uuids"] = _uuids([torch.cuda.get_device_properties(index) for index in indices])
            (torch.ones(8, device="cuda") + 1).sum().item()
    except (RuntimeError, AssertionError, ValueError) as error:  # ValueError: settings that torch does not take
        found["trial_error"] = _first_line(str(error))
    return found


def _uuids(properties: Sequence[Any]) -> tuple[str, ...]:
    """The UUIDs where every device has one of its own: torch 2.5 and newer, with CUDA."""
    import torch

    found = [str(getattr(each, "uuid", "")) for each in properties] if torch.version.cuda is not None else []
    return tuple(found) if all(set(uuid) - set("0-") for uuid in found) and len(set(found)) == len(found) else ()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def print_facts() -> None:
    """Write the facts as one marked line of JSON, apart from whatever torch's libraries print."""
    sys.stdout.write(f"\n{_MARK}{json.dumps(asdict(measure_torch_facts()))}\n")
    sys.stdout.flush()
