"""What the fixture `training_memory` hands out: one traced step, and what a test may claim of it."""

from __future__ import annotations

import copy
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.api import outline, timeline
from bench.errors import BenchError
from bench.units import exact_bytes, parse_bytes

if TYPE_CHECKING:
    from bench.estimators.timeline import Timeline
    from bench.guard import Guarded

FOLDER = "memory_baselines"
_CLASSES = 1000
"""Of the labels, where a test gives the shape of a sample alone: no memory depends on it but what the model makes."""


def tracer(request: pytest.FixtureRequest, marker: str, option: str, written: str) -> Callable[..., TrainingMemory]:
    """What the fixture returns, for one test.

    Args:
        request: Of the test.
        marker: The name of the marker with keywords.
        option: The option that writes baselines.
        written: The property of the test's report that receives the path of a baseline that was written.
    """
    names: set[str] = set()
    counted = [0]

    def trace(
        model: Any, sample_shape: tuple[int, int, int] | None = None, *, name: str | None = None, **keywords: Any
    ) -> TrainingMemory:
        __tracebackhide__ = True
        for found in request.node.iter_markers(marker):
            if found.args:
                pytest.fail(f"@pytest.mark.{marker}({found.args[0]!r}): keywords alone are taken, such as device=...")
            keywords = {**found.kwargs, **keywords}
        if sample_shape is not None:
            keywords = {"classes": _CLASSES, **keywords, "sample_shape": sample_shape}
        counted[0] += 1
        default = request.node.name if counted[0] == 1 else f"{request.node.name} #{counted[0]}"
        if (called := name or default) in names:
            pytest.fail(f"{called}: two calls have this name, and one baseline; give each another name=...")
        names.add(called)
        return TrainingMemory(request, (option, written), called, _builder(model), keywords)

    return trace


class TrainingMemory:
    """The memory of one training step on a GPU that need not be here.

    Attributes:
        name: Under which the baseline holds it.
        guarded: The trace: a `bench.guard.Guarded`, with its `outline`.
    """

    def __init__(
        self, request: pytest.FixtureRequest, names: tuple[str, str], name: str, model: Any, keywords: dict[str, Any]
    ) -> None:
        """Trace, or fail the test; `names` are `option` and `written` of `tracer`."""
        __tracebackhide__ = True
        self._option, self._written = names
        self.name, self._request, self._model, self._keywords = name, request, model, keywords
        self.guarded: Guarded = _or_fail(name, outline, model, **keywords)

    @property
    def peak_allocated_bytes(self) -> int:
        """What `torch.cuda.max_memory_allocated` will say of a step once it has settled."""
        return self.guarded.outline.peak_allocated_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """What `torch.cuda.max_memory_reserved` will say."""
        return self.guarded.outline.peak_reserved_bytes

    def timeline(self) -> Timeline:
        """Memory over the step, as `bench.timeline` has it."""
        __tracebackhide__ = True
        keywords = {"device": "h100_sxm", "workspaces": False, **self._keywords}
        return _or_fail(self.name, timeline, self._model, **keywords)  # type: ignore[no-any-return]

    def assert_below(self, size: int | str) -> None:
        """Fail unless the peak of allocated memory is at most `size`, bytes or a text such as `20 GiB`."""
        __tracebackhide__ = True
        most = _or_fail(self.name, _parse_limit, size)
        if self.peak_allocated_bytes > most:
            largest = "\n".join(f"  {tensor.size_bytes:>14,} B  {tensor.label}" for tensor in self.timeline().tensors)
            pytest.fail(
                f"{self.name}: the peak is {exact_bytes(self.peak_allocated_bytes)}, above {exact_bytes(most)}; it "
                f"lies at {self.guarded.outline.peak_at}. The largest tensors there:\n{largest}"
            )

    def assert_unchanged(self, *, allow: int | str = 0) -> None:
        """Fail unless the peak is that of the baseline.

        Args:
            allow: Growth that is let through, as bytes, `16 MiB` or `1 %`; the peak may then shrink, too.
        """
        __tracebackhide__ = True
        from bench.guard import Allowed, Change, Course, change_lines, read_baselines, update_baselines
        from bench.guard.changes import format_change

        path = self.baseline_path
        if self._request.config.getoption(self._option):
            if _or_fail(self.name, update_baselines, path, {self.name: self.guarded}):
                self._request.node.user_properties.append((self._written, str(path)))
            return
        allowed = _or_fail(self.name, Allowed.parse, allow)
        change = Change.of(self.name, _or_fail(self.name, read_baselines, path).get(self.name), self.guarded, allowed)
        if change.status is Course.SAME or (allow and change.status in (Course.ALLOWED, Course.SHRANK)):
            return
        if change.before is None:
            pytest.fail(f"{self.name}: no baseline in {path}. Write it with pytest {self._option}, and commit it")
        lines = [f"{self.name}: peak memory {format_change(change.before_bytes, change.after_bytes)}"]
        lines += [f"  {line}" for line in change_lines(change)]
        pytest.fail("\n".join([*lines, f"If it is meant to change: pytest {self._option}, and commit {path}"]))

    @property
    def baseline_path(self) -> Path:
        """`memory_baselines/<module>.<test>.json` beside the test's file: a file for each test, with all its calls."""
        node = self._request.node
        words = [node.path.stem, *([node.cls.__qualname__] if node.cls else []), node.name]
        full = ".".join(words)
        plain = re.sub(r"[^\w.,=\[\]-]", "_", full)[:150]
        digits = "" if plain == full else f"-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
        return Path(node.path.parent, FOLDER, f"{plain}{digits}.json")


def _builder(model: Any) -> Any:
    """What builds the model: of a module that is built, its copy."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return model

    def build() -> Any:
        return copy.deepcopy(model)

    build.__name__ = type(model).__name__
    return build


def _parse_limit(size: int | str) -> int:
    """Bytes. Raises BenchError."""
    try:
        return parse_bytes(str(size))
    except ValueError as error:
        raise BenchError(f"assert_below: {error}") from error


def _or_fail(name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What a call returns; an error that a user can fix fails the test in one line."""
    __tracebackhide__ = True
    try:
        return call(*arguments, **keywords)
    except BenchError as error:
        said = str(error)
    except TypeError as error:
        if call.__name__ not in str(error):
            raise
        said = f"training_memory: {str(error).replace(call.__name__, 'training_memory', 1)}"  # no such keyword
    pytest.fail(f"{name}: {said}")  # not while the error is handled: pytest would show its frames in this package
