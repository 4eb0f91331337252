"""A CUDA device that does not exist, so that torch's real allocator runs on any machine: the oracle of the estimates.

How to use it, in a test (the fixture `stub_driver` comes from this folder's conftest.py)::

    driver = build_stub(cache_dir)                     # seconds the first time; raises StubUnavailable with the reason
    case = ("resnet50", (3, 224, 1000), "adam", {}, 64, "float32", "contiguous")
    run = driver.run_case(case, device="h200", history=True)
    run.memory_stats[2]["allocated_bytes.all.peak"]    # [0] before the first step, [k] after step k
    run.events["action"], run.events["address"], run.events["bytes"]   # see ACTIONS; addresses in units of 512 B
    driver.run_script("script.py", ["argument"], device="a100-40gb")   # any script of yours, stdout returned

`driver.environment("h200", addresses="descending", memory_bytes=8 << 30)` is what a process must be started with; a
`PYTORCH_CUDA_ALLOC_CONF` goes in as `allocator="max_split_size_mb:64"`. Cases are those of `step.py` in this folder,
and so is the step: model to the device, optimizer, images, labels; then zero_grad, forward, loss, backward, step.

What is true here: the dispatcher, autograd, the optimizers, every allocation that torch's host code makes, the caching
allocator, out-of-memory handling. What is not: values (all zeros, so control flow that reads the device goes its own
way), time, cuDNN's and cuBLAS's choice of algorithms: cuDNN workspaces and batch-norm reserves are 0 bytes. With
`cudnn_workspaces=True` the wheel's own cuDNN chooses plans for convolutions and attention, and workspaces are true to
its heuristics.

The driver is `driver.c`, its management library `nvml.c` (its head says how to let it start and which faults it plays),
plus one generated function returning 0 for each further symbol of NVIDIA's that torch's libraries import (`nm -D
--undefined-only`). Nothing of NVIDIA's is shipped: types come from the headers of the wheels that torch depends on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests import warm

from .devices import DEVICES, describe_to_cudnn

HERE = Path(__file__).parent
SOURCES = ("driver.c", "nvml.c")
ACTIONS = {"alloc": 0, "free_requested": 1, "free_completed": 2, "segment_alloc": 3, "segment_free": 4, "mark": 5}
"""Codes of `CaseRun.events["action"]`; 9 is any other. A mark's `bytes` is the step's number."""

BOARD_UUID = "GPU-b0a2d000-0000-0000-0000-000000000000"
"""Of the board of slices."""

Case = tuple[str, tuple[int, int, int], str, dict[str, Any], int, str, str]
"""Model, image (channels, size, classes), optimizer, its settings, batch size, precision, memory format."""

_NVIDIA = re.compile(r"^(cuda|__cuda|cublas|cudnn|cusparse|cusolver|cufft|cu[A-Z])")
_LEFT_TO_THE_WHEELS = re.compile(
    r"^(cuFile|cusparseLt|cudnnGet(Version|ErrorString|LastErrorString|Property|CudartVersion)$)"
)
_ASKED_BY_CUDNN = """
cuCtxGetDevice cuCtxGetLimit cuDevicePrimaryCtxRelease cuDevicePrimaryCtxReset cuInit cuKernelGetAttribute
cuKernelGetFunction cuKernelSetAttribute cuLaunchKernelEx cuLibraryGetKernel cuLibraryLoadData cuLibraryLoadFromFile
cuLibraryUnload cuLinkAddData cuLinkAddFile_v2 cuLinkCreate cuLinkDestroy cuMemcpyDtoH_v2 cuModuleGetGlobal_v2
cuModuleLoadFatBinary cuOccupancyMaxPotentialClusterSize cuStreamGetCtx cuStreamGetGreenCtx cuStreamSynchronize
"""
"""What cuDNN's engines that compile at run time look up in the driver before they call themselves supported."""
_HOST_DEFINES = "\n".join(
    f"#define {word}"
    for word in ("__device_builtin__", "__builtin_align__(n)", "__align__(n)", "__host__", "__device__")
)


class StubUnavailable(RuntimeError):
    """The stub driver cannot be had on this machine; the message is a reason fit for `pytest.skip`."""


@dataclass(frozen=True)
class CaseRun:
    """What one training case did under the stub.

    Attributes:
        record: Axes, `status`, `memory_stats` and free/total bytes, in the form of the recordings from real GPUs.
        events: Arrays `action`, `address` (units of 512 B above the lowest) and `bytes`, or None without history.
    """

    record: dict[str, Any]
    events: dict[str, npt.NDArray[np.int64]] | None

    @property
    def memory_stats(self) -> list[dict[str, int]]:
        """torch.cuda.memory_stats() before the first step and after each, in bytes."""
        stats: list[dict[str, int]] = self.record["memory_stats"]
        return stats


@dataclass(frozen=True)
class StubDriver:
    """A compiled stub driver.

    Attributes:
        library: The shared object, named `libcuda.so.1`, to be preloaded.
        cuda_version: What it reports as driver and runtime version, e.g. 13020.
    """

    library: Path
    cuda_version: int

    def environment(
        self,
        device: str = "h200",
        *,
        allocator: str = "",
        cudnn_workspaces: bool = False,
        variables: Mapping[str, str] | None = None,
        devices: Sequence[str] = (),
        board: str = "",
        **settings: int | str,
    ) -> dict[str, str]:
        """Environment of a process that shall see `device`.

        Args:
            device: A key of DEVICES.
            allocator: Value of PYTORCH_CUDA_ALLOC_CONF; empty for torch's defaults.
            cudnn_workspaces: Let the wheel's own cuDNN (9.8 or newer) choose plans and say what workspaces they need.
            variables: Further environment variables, as a user would set them.
            devices: Keys of DEVICES: a host with these GPUs instead of the one, each with a UUID of its own.
            board: A key of DEVICES: the `devices` are slices of that GPU, by MIG.
            **settings: Replace the device's settings, e.g. `memory_bytes`, `context_bytes` (taken by the context),
                `others_bytes` (taken by other processes), `addresses` (`ascending`, `descending`, `lowest`: the lowest
                free one, reused); or plan faults, as the heads of `driver.c` and `nvml.c` say.

        Raises:
            KeyError: `device` is not played here.
        """
        chosen: dict[str, int | str] = {**DEVICES[device], "cuda_version": self.cuda_version, **settings}
        unwanted = (
            "PYTORCH_",
            "CUBLAS",
            "BENCH_STUB",
            "TORCH_",
            "DISABLE_ADDMM",
            "CUDA_VISIBLE",
            "LD_PRELOAD",
            "NVIDIA_TF32",
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        environment.update({f"BENCH_STUB_{k.upper()}": str(v) for k, v in chosen.items()})
        if devices:
            environment["BENCH_STUB_DEVICES"] = str(len(devices))
        for k, name in enumerate(devices):
            own = {**DEVICES[name], "uuid": f"{'MIG' if board else 'GPU'}-{k:08x}-0000-0000-0000-000000000000"}
            environment.update({f"BENCH_STUB_{k}_{key.upper()}": str(value) for key, value in own.items()})
        if board:
            cut = DEVICES[board]
            parts = {"UUID": BOARD_UUID, "NAME": cut["name"], "BYTES": cut["memory_bytes"]}
            environment.update({f"BENCH_STUB_BOARD_{key}": str(value) for key, value in parts.items()})
        if cudnn_workspaces:
            environment["BENCH_STUB_CUDNN_DEVICE"] = describe_to_cudnn(chosen)
        environment["LD_PRELOAD"] = str(self.library)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(
            [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        )
        environment["OMP_NUM_THREADS"] = "1"
        if allocator:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = allocator
        environment.update(variables or {})
        return environment

    def run_script(
        self,
        script: Path | str,
        arguments: Sequence[object] = (),
        *,
        timeout_s: float = 300,
        fresh: bool = True,
        **settings: Any,
    ) -> str:
        """Run a Python script in a process of its own under the stub; returns its standard output.

        Args:
            script: Path of the script.
            arguments: Turned into strings.
            timeout_s: Limit in seconds.
            fresh: In a Python that has nothing loaded; otherwise in a fork of one that has torch loaded, without these
                settings and variables, and CUDA untouched: torch reads all but `TORCH_*` when it initialises CUDA.
            **settings: As for `environment` (device, allocator, ...).

        Raises:
            RuntimeError: The script failed; the message ends with its standard error.
        """
        words, env = list(map(str, arguments)), self.environment(**settings)
        if fresh:
            command = [sys.executable, str(script), *words]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
        else:
            done = warm.run(words, env, timeout_s=timeout_s, script=Path(script), loaded_with=self.environment("h200"))
        if done.returncode:
            raise RuntimeError(
                f"{Path(script).name} under the stub ended with {done.returncode}:\n{done.stderr[-3000:]}"
            )
        return done.stdout

    def run_case(self, case: Case, *, steps: int = 3, history: bool = True, **settings: Any) -> CaseRun:
        """Run a training case in a fresh process.

        Args:
            case: See Case; for `step.py`'s models and optimizers.
            steps: Number of training steps.
            history: Whether to record the caching allocator's events.
            **settings: As for `environment` (device, allocator, ...).
        """
        return self.run_cases([case], steps=steps, history=history, **settings)[0]

    def run_cases(
        self,
        cases: Sequence[Case],
        *,
        steps: int = 3,
        history: bool = True,
        warmup_steps: int | None = None,
        **settings: Any,
    ) -> list[CaseRun]:
        """Run several cases, each in a process forked from one that has torch loaded and CUDA untouched.

        Peaks start again after `warmup_steps`.
        """
        read_by_loading = [name for name in settings.get("variables") or () if name.startswith("TORCH_")]
        with tempfile.TemporaryDirectory() as folder:
            task = Path(folder, "task.json")
            task.write_text(
                json.dumps({"cases": cases, "steps": steps, "history": history, "warmup_steps": warmup_steps})
            )
            self.run_script(
                HERE / "step.py",
                [task, folder],
                timeout_s=120 + 60 * len(cases),
                fresh=bool(read_by_loading),
                **settings,
            )
            return [_read_run(Path(folder), index) for index in range(len(cases))]


def _read_run(folder: Path, index: int) -> CaseRun:
    record = json.loads((folder / f"{index}.json").read_text())
    events = None
    if (folder / f"{index}.npz").exists():
        with np.load(folder / f"{index}.npz") as arrays:
            events = {name: arrays[name] for name in arrays.files}
    return CaseRun(record, events)


def build_stub(cache_dir: Path | str) -> StubDriver:
    """Compile the stub driver for the installed torch, or reuse an earlier build of the same parts.

    Args:
        cache_dir: Folder for builds; made if absent. Two processes may build at the same time.

    Raises:
        StubUnavailable: torch is absent or a build without CUDA, gcc or nm is absent, or the headers are.
    """
    compiler, lister = _tool("gcc"), _tool("nm")
    libraries, cuda_version = _torch_libraries()
    sources = {name: (HERE / name).read_text() for name in SOURCES}
    written = "\n".join(sources.values())
    sources["symbols.c"] = _generate(_imported_symbols(lister, libraries), written)
    parts = "\0".join((*sources.values(), str(cuda_version), compiler, torch_version()))
    folder = Path(cache_dir).resolve() / hashlib.sha256(parts.encode()).hexdigest()[:16]
    library = folder / "libcuda.so.1"
    if not library.exists():
        _compile(compiler, sources, library)
    return StubDriver(library, cuda_version)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise StubUnavailable(f"the stub driver needs {name}, which is not on PATH")
    return path


def torch_version() -> str:
    """The installed torch's version, without importing it."""
    return importlib.metadata.version("torch")


@functools.cache
def _torch_libraries() -> tuple[tuple[Path, ...], int]:
    """The installed torch's shared libraries and its CUDA version as an integer, found without importing torch."""
    try:
        root = Path(str(importlib.metadata.distribution("torch").locate_file("torch")))
    except importlib.metadata.PackageNotFoundError:
        raise StubUnavailable("the stub driver needs torch, which is not installed") from None
    match = re.search(r"^cuda[^=\n]*=\s*'(\d+)\.(\d+)'", (root / "version.py").read_text(), re.MULTILINE)
    if match is None or not (root / "lib" / "libtorch_cuda.so").exists():
        raise StubUnavailable("the stub driver needs a CUDA build of torch on Linux; this torch is built without CUDA")
    return tuple(sorted((root / "lib").glob("lib*.so"))), 1000 * int(match[1]) + 10 * int(match[2])


def _imported_symbols(lister: str, libraries: Sequence[Path]) -> list[str]:
    names = set(_ASKED_BY_CUDNN.split())
    for library in libraries:
        listing = subprocess.run(
            [lister, "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
        )
        names.update(line.split()[-1].split("@")[0] for line in listing.stdout.splitlines() if line.strip())
        if library.name == "libc10_cuda.so":  # asks the driver for these by name, when it first needs them
            names.update(name.decode() for name in re.findall(rb"(?<=\0)cu[A-Z]\w{4,40}(?=\0)", library.read_bytes()))
    return sorted(name for name in names if _NVIDIA.match(name) and not _LEFT_TO_THE_WHEELS.match(name))


def _generate(names: Sequence[str], source: str) -> str:
    """C source with one function returning 0 for each name that `source` does not define."""
    wanted = [name for name in names if not re.search(rf"\b{name}\s*\(|(OPAQUE|DISPOSE|HANDLE)\({name}\)", source)]
    lines = [f'__attribute__((visibility("default"))) long {name}(void) {{ return 0; }}' for name in wanted]
    return "\n".join(["/* Generated: symbols that torch imports and that driver.c leaves alone. */", *lines, ""])


def _include_folders() -> Iterator[Path]:
    """Folders with `driver_types.h` among the wheels that torch depends on; CUDA 12 and 13 lay them out differently."""
    for requirement in importlib.metadata.distributions():
        if str(requirement.metadata["Name"]).startswith("nvidia-cuda-runtime"):
            for file in requirement.files or ():
                if file.name == "driver_types.h":
                    yield Path(str(file.locate())).parent


def _compile(compiler: str, sources: Mapping[str, str], library: Path) -> None:
    include = next(_include_folders(), None)
    if include is None:
        raise StubUnavailable(
            "the stub driver needs driver_types.h of the nvidia-cuda-runtime wheel, which is not installed"
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as name:
        folder = Path(name)
        (folder / "crt").mkdir()
        (folder / "crt" / "host_defines.h").write_text(_HOST_DEFINES)  # the CUDA 13 wheels come without it
        for name, text in sources.items():
            (folder / name).write_text(text)
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-O1",
            "-w",
            "-fvisibility=hidden",
            "-Wl,-soname,libcuda.so.1",
            f"-I{folder}",
            f"-I{include}",
            *(f"{folder}/{name}" for name in sources),
            "-o",
            f"{folder}/{library.name}",
            "-ldl",
            "-lpthread",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} could not compile the stub driver:\n{done.stderr[-3000:]}")
        (folder / "libnvidia-ml.so.1").symlink_to(library.name)
        (folder / "libnvidia-ml.so.1").replace(library.with_name("libnvidia-ml.so.1"))
        (folder / library.name).replace(library)
