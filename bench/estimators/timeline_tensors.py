"""The biggest storages alive at a moment of a recording, by the names that people know them by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.estimators.allocator import Alloc, Event, Free
from bench.estimators.recording import Phase

if TYPE_CHECKING:
    from bench.estimators.timeline_names import Names

MOST_TENSORS = 8
_OUTSIDE = {
    Phase.SETUP: "setup", Phase.ZERO_GRAD: "zero_grad", Phase.FORWARD: "loss", Phase.BACKWARD: "loss",
    Phase.OPTIMIZER: "optimizer",
}  # fmt: skip
"""Who made what no module made."""


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A storage that is alive at the peak.

    Attributes:
        category: One of `TRACE_PARTS` but rounding.
        name: Dotted name of the parameter (also for its gradient and state) or of the module that made it, `images`,
            `labels`, `loss` or `optimizer`.
        made_by: The operator, or the optimizer's word for a state; empty for parameters, gradients and the batch.
        dtype: Torch's name of the type; None where a kernel took bytes for itself.
        shape: Of the tensor that it was made for; None as above.
        size_bytes: What was asked for.
    """

    category: str
    name: str
    made_by: str
    dtype: str | None
    shape: tuple[int, ...] | None
    size_bytes: int

    @property
    def label(self) -> str:
        """`layer1.0.conv2 convolution (64, 64, 56, 56) float32`."""
        shape = "" if self.shape is None else f"({', '.join(map(str, self.shape))})"
        scratch = "workspace" if self.category == "workspaces" else "scratch"
        return " ".join(filter(None, (self.name, self.made_by, shape, self.dtype or scratch)))


class Asked(NamedTuple):
    """An event with the place in the recording of the call that it belongs to, -1 before the first."""

    event: Event
    call: int


def biggest_tensors(asked: Iterable[Asked], entries: Sequence[Any], names: Names) -> Iterator[LiveTensor]:
    """The biggest storages that are alive after some events, the biggest first; of equals the first made.

    Args:
        asked: Events from the very first on.
        entries: Of a `Recording`; calls are places in it.
        names: Of its storages.
    """
    live: dict[int, tuple[Alloc, int]] = {}
    for event, call in asked:
        if isinstance(event, Alloc):
            live[event.id] = event, call
        elif isinstance(event, Free):
            live.pop(event.id, None)
    ordered = sorted(live.values(), key=lambda item: (-item[0].size, item[0].id))
    for event, call in ordered[:MOST_TENSORS]:
        yield _name(event, entries[: call + 1], names)


def _name(event: Alloc, entries: Sequence[Any], names: Names) -> LiveTensor:
    """What is known of a storage; `entries` end with the call that made it."""
    category = event.category or "temporaries"
    birth = names.births.get(event.id)
    spec = birth.spec if birth else None
    dtype, shape = (spec.dtype, spec.shape) if spec else (None, None)
    if category == "batch":
        return LiveTensor(
            category, "labels" if spec and spec.dtype == "int64" else "images", "", dtype, shape, event.size
        )
    if event.id in names.holders and category in ("parameters", "gradients", "optimizer_state"):
        return LiveTensor(category, *names.holders[event.id], dtype, shape, event.size)
    calls = [entry for entry in reversed(entries) if entry is not None and not isinstance(entry, int)]
    path = birth.path if birth else _nearest_path(calls, names)
    operator = calls[0][0].removeprefix("aten::").partition(".")[0]
    return LiveTensor(category, path or _OUTSIDE[calls[0][3]], operator, dtype, shape, event.size)


def _nearest_path(calls: Sequence[Any], names: Names) -> str | None:
    """The module that ran: that of the nearest of some calls, the last first, that made a storage in the same phase."""
    for _, _, outputs, phase in calls:
        if phase != calls[0][3]:
            break
        for number, _ in outputs:
            if number in names.births:
                return names.births[number].path
    return None
