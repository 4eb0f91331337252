"""What of the GPU and of torch decides the allocations of kernels' host code."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU and the torch that runs on it.

    Attributes:
        multiprocessors: Those that are enabled.
        threads_per_multiprocessor: Resident at once.
        compute_capability: Major and minor.
        torch_version: Major and minor of the torch that is estimated for.
    """

    multiprocessors: int
    threads_per_multiprocessor: int
    compute_capability: tuple[int, int]
    torch_version: tuple[int, int]

    @property
    def keeps_workspaces(self) -> bool:
        """Whether cuBLAS's workspace lives on after its first use, one for each thread that multiplies.

        Torch 2.15 takes it around each call unless TORCH_CUBLAS_WORKSPACE_CACHE is set (CublasHandlePool.cpp:
        isCUDABlasWorkspaceCachingEnabled); 2.6, 2.9 and 2.13 keep it. 2.14 was not seen and is taken for the newer.
        """
        return self.torch_version <= (2, 13)

    @property
    def lt_workspace(self) -> str:
        """Whether cublasLt's 1 MiB is taken at `each` call, `kept` like cuBLAS's, or `shared` with it.

        Seen: 2.6 and 2.15 each, 2.9 kept, 2.13 shared. Between those, 2.7 to 2.10 are taken for kept and 2.11 to 2.13
        for shared.
        """
        if (2, 7) <= self.torch_version <= (2, 10):
            return "kept"
        return "shared" if (2, 11) <= self.torch_version <= (2, 13) else "each"

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of a cuBLAS handle and stream (aten/src/ATen/cuda/CublasHandlePool.cpp: parseChosenWorkspaceSize)."""
        return 4096 * 8 * 1024 if self.compute_capability[0] >= 9 else 4096 * 1024 * 2 + 16 * 1024 * 8
