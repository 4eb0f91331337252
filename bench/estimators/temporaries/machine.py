"""What of the GPU, of torch and of its settings decides the allocations of kernels' host code.

With it, the pieces that scripts of allocations are put together from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.estimators.tensors import Spec, is_contiguous

Script = list[tuple[int, int]]

WORKSPACE = -8
"""The slot of a library's workspace: done without where there is no room for it."""


def workspace(size: int) -> Script:
    """One workspace, allocated and freed."""
    return [(WORKSPACE, size), (WORKSPACE, 0)] if size else []


def results(outputs: Iterable[int]) -> Script:
    """All results in order."""
    return list(enumerate(outputs))


def around(*sizes: int, first: int = -1, within: Script | None = None) -> Script:
    """Temporaries that live during one kernel: allocated in order, freed in reverse; zeros are left out.

    What is `within` happens between.
    """
    slots = [(first - index, size) for index, size in enumerate(sizes) if size]
    return slots + (within or []) + [(slot, 0) for slot, _ in reversed(slots)]


def copy_bytes(spec: Spec | None) -> int:
    """Bytes of a contiguous copy, 0 where none is needed."""
    return 0 if spec is None or is_contiguous(spec) else spec.numel * spec.item_bytes


MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class BlasSettings:
    """The user's settings of cuBLAS's workspaces; the defaults are those of an environment that says nothing.

    Attributes:
        workspace_bytes: Of cuBLAS (`CUBLAS_WORKSPACE_CONFIG`); None for torch's own choice, which depends on the GPU.
        lt_workspace_bytes: Of cublasLt (`CUBLASLT_WORKSPACE_SIZE`).
        prefers_lt: Whether products without a bias go to cublasLt too (`TORCH_BLAS_PREFER_CUBLASLT`).
        bias_in_lt: Whether products with a bias go to cublasLt, which adds it (off: `DISABLE_ADDMM_CUDA_LT`).
        unified: Whether cublasLt works in cuBLAS's workspace where that is kept (`TORCH_CUBLASLT_UNIFIED_WORKSPACE`);
            None for the version's default.
        cached: Whether workspaces are kept (`TORCH_CUBLAS_WORKSPACE_CACHE`); None for the version's default.
    """

    workspace_bytes: int | None = None
    lt_workspace_bytes: int = MIB
    prefers_lt: bool = False
    bias_in_lt: bool = True
    unified: bool | None = None
    cached: bool | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU and the torch that runs on it.

    Attributes:
        multiprocessors: Those that are enabled.
        threads_per_multiprocessor: Resident at once.
        compute_capability: Major and minor.
        torch_version: Major and minor of the torch that is estimated for.
        blas: Settings of cuBLAS's workspaces.
        name: As the driver gives it.
        memory_bytes: All of the GPU's; None where its file does not state it.
        l2_bytes: Of its cache; None likewise.
    """

    multiprocessors: int
    threads_per_multiprocessor: int
    compute_capability: tuple[int, int]
    torch_version: tuple[int, int]
    blas: BlasSettings = BlasSettings()
    name: str | None = None
    memory_bytes: int | None = None
    l2_bytes: int | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """What is known of the GPU, by the names of `torch.cuda.get_device_properties`."""
        stated = {
            "name": self.name,
            "multi_processor_count": self.multiprocessors,
            "max_threads_per_multi_processor": self.threads_per_multiprocessor,
            "total_memory": self.memory_bytes,
            "L2_cache_size": self.l2_bytes,
            "warp_size": 32,
        }
        return {name: value for name, value in stated.items() if value is not None}

    @property
    def keeps_workspaces(self) -> bool:
        """Whether cuBLAS's workspace lives on after its first use, one for each thread that multiplies.

        Torch 2.15 takes it around each call unless TORCH_CUBLAS_WORKSPACE_CACHE is set (CublasHandlePool.cpp:
        isCUDABlasWorkspaceCachingEnabled); 2.6, 2.9, 2.11 and 2.13 keep it and do not read that variable. 2.14 was not
        seen and is taken for the newer.
        """
        return self.torch_version <= (2, 13) or self.blas.cached is True

    @property
    def lt_workspace(self) -> str:
        """Whether cublasLt's workspace is taken at `each` call, `kept` like cuBLAS's, or `shared` with it.

        Seen: 2.6 and 2.15 each, 2.9 and 2.11 kept, 2.13 shared, and 2.15 shared where workspaces are kept, unless
        TORCH_CUBLASLT_UNIFIED_WORKSPACE is 0. Of the others, 2.7 to 2.10 are taken for kept and 2.12 for shared.
        """
        if self.torch_version < (2, 7) or not self.keeps_workspaces:
            return "each"
        by_default = self.torch_version >= (2, 12)
        return "shared" if (by_default if self.blas.unified is None else self.blas.unified) else "kept"

    @property
    def lt_workspace_bytes(self) -> int:
        """Of cublasLt. 2.11 caps it at cuBLAS's by default as if they were shared, and keeps one of its own."""
        asked = self.blas.lt_workspace_bytes
        if self.torch_version == (2, 11) and self.blas.unified is not False:
            return min(asked, self.cublas_workspace_bytes)
        return asked

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of a cuBLAS handle and stream (aten/src/ATen/cuda/CublasHandlePool.cpp: parseChosenWorkspaceSize).

        Torch's own choice is 32 MiB on Hopper, since 2.12 on Blackwell too (pytorch pull request 175344; 2.11 was seen
        without it) and since 2.14 on compute capability 11 (189312, of July 2026; seen on 2.15).
        """
        if self.blas.workspace_bytes is not None:
            return self.blas.workspace_bytes
        since = {9: (2, 0), 10: (2, 12), 11: (2, 14), 12: (2, 12)}.get(self.compute_capability[0])
        is_large = since is not None and self.torch_version >= since
        return 4096 * 8 * 1024 if is_large else 4096 * 1024 * 2 + 16 * 1024 * 8

    def uses_lt(self, operator: str) -> bool:
        """Whether a product goes to cublasLt (aten/src/ATen/native/cuda/Blas.cpp, aten/src/ATen/cuda/CUDABlas.cpp)."""
        return self.blas.prefers_lt or (self.blas.bias_in_lt and operator == "aten::addmm")
