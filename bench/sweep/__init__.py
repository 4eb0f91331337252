"""Running a plan: the parent supervises and writes, and imports no torch.

Whatever happens to a run becomes a row, and a run exists once its part does, so that the same command after any kind of
death goes on with what is missing.
"""

from bench.sweep.session import SweepOptions, read_device_file, read_environment
from bench.sweep.stages import RETRIED, SweepOutcome, parse_statuses, run_sweep

__all__ = [
    "RETRIED",
    "SweepOptions",
    "SweepOutcome",
    "parse_statuses",
    "read_device_file",
    "read_environment",
    "run_sweep",
]
