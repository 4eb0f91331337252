"""From a case to the model, the batches and THE training step; the lowest package that imports torch."""

from bench.workload.step import MEMORY_FORMATS, Workload, build_model, build_workload, numeric_modes

__all__ = ["MEMORY_FORMATS", "Workload", "build_model", "build_workload", "numeric_modes"]
