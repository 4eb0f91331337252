"""A recording of a real GPU beside the trace of the same case: where do the two part, and at which operators?

`explain_recording` asks in the order in which differences are found fastest. First the recording is replayed by itself:
if that is not exact, the replay is wrong and nothing else can be said. Then the trace is made for the recording's GPU
and versions, its allocations are laid beside the recorded ones, and what differs is named by operator, with what
mending it would do to the trace's peaks. It traces the case, so it needs a process of its own (see `fake_cuda`).
"""

from bench.estimators.difference.exactness import ReplayCheck, check_replay
from bench.estimators.difference.explain import Explanation, compare, explain_recording
from bench.estimators.difference.partings import Kind, Parting

__all__ = ["Explanation", "Kind", "Parting", "ReplayCheck", "check_replay", "compare", "explain_recording"]
