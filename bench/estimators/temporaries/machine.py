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
    def cublas_workspace_bytes(self) -> int:
        """Of a cuBLAS handle and stream (aten/src/ATen/cuda/CublasHandlePool.cpp: parseChosenWorkspaceSize)."""
        return 4096 * 8 * 1024 if self.compute_capability[0] >= 9 else 4096 * 1024 * 2 + 16 * 1024 * 8
