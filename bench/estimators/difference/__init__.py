"""Compares a recording of a real GPU with the trace of the same case, operator by operator.

`explain_recording` works in the order that finds differences fastest. First the recording is replayed by itself: if
that is not exact, the replay is wrong and nothing else can be concluded. Then the case is traced for the recording's
GPU and versions, its allocations are aligned with the recorded ones, and differences are listed by operator, with the
effect of fixing each on the trace's peaks. Tracing needs a separate process (see `fake_cuda`).
"""

from bench.estimators.difference.exactness import ReplayCheck, check_replay
from bench.estimators.difference.explain import Explanation, compare, explain_recording
from bench.estimators.difference.partings import Kind, Parting

__all__ = ["Explanation", "Kind", "Parting", "ReplayCheck", "check_replay", "compare", "explain_recording"]
