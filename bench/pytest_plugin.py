"""Pytest plugin: the GPU memory of a training step as an assertion, on a machine without a GPU.

    def test_memory(training_memory):
        training_memory(build, (3, 224, 224), optimizer="adamw", batch_size=32).assert_unchanged()

The fixture `training_memory` traces a step; the marker `training_memory(...)` gives keywords for all of a test's calls;
`pytest --update-memory-baselines` writes what is traced to `memory_baselines/` beside the test's file. Nothing but
pytest is imported before the fixture is used.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.estimators.timeline import Timeline
    from bench.guard import Guarded

FOLDER = "memory_baselines"
OPTION = "--update-memory-baselines"
_MARKER = "training_memory"
_WRITTEN = "memory baseline"
_CLASSES = 1000
"""Of the labels, where a test gives the shape of a sample alone: no memory depends on it but what the model makes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that writes baselines."""
    group = parser.getgroup("stepbench")
    group.addoption(OPTION, action="store_true", help="write the memory baselines of training_memory(...) anew")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(**keywords): keywords for each call of the fixture {_MARKER} in this test: device, optimizer, ...",
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which baselines were written, by all workers of xdist together."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    written = sorted({value for report in reports for key, value in report.user_properties if key == _WRITTEN})
    for path in written:
        terminalreporter.write_line(f"memory baseline written: {path}")


@pytest.fixture  # type: ignore[untyped-decorator,unused-ignore]  # where pytest is not installed
def training_memory(request: pytest.FixtureRequest) -> Callable[..., TrainingMemory]:
    """Trace the GPU memory of a training step.

    Returns:
        A function `(model, sample_shape=None, *, name=None, **keywords) -> TrainingMemory`. The model is a callable
        that builds one, a module, or a name (`"resnet50"`, `"timm:convnextv2_tiny"`); the keywords are those of
        `bench.estimate`: `optimizer`, `batch_size`, `device`, `precision`, `loss`, `step` with `inputs`, ... The step
        is traced at once; where that is refused, the test fails with the operator and the reason.
    """
    counted = [0]

    def trace(
        model: Any, sample_shape: tuple[int, int, int] | None = None, *, name: str | None = None, **keywords: Any
    ) -> TrainingMemory:
        __tracebackhide__ = True
        for marker in request.node.iter_markers(_MARKER):
            keywords = {**marker.kwargs, **keywords}
        if sample_shape is not None:
            keywords = {"classes": _CLASSES, **keywords, "sample_shape": sample_shape}
        counted[0] += 1
        default = request.node.name if counted[0] == 1 else f"{request.node.name} #{counted[0]}"
        return TrainingMemory(request, name or default, _builder(model), keywords)

    return trace


class TrainingMemory:
    """The memory of one training step on a GPU that need not be here.

    Attributes:
        name: Under which the baseline holds it.
        guarded: The trace: a `bench.guard.Guarded`, with its `outline`.
    """

    def __init__(self, request: pytest.FixtureRequest, name: str, model: Any, keywords: dict[str, Any]) -> None:
        """Trace, or fail the test."""
        __tracebackhide__ = True
        from bench.api import outline

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
        from bench.api import timeline

        keywords = {"device": "h100_sxm", "workspaces": False, **self._keywords}
        return _or_fail(self.name, timeline, self._model, **keywords)  # type: ignore[no-any-return]

    def assert_below(self, size: int | str) -> None:
        """Fail unless the peak of allocated memory is at most `size`, bytes or a text such as `20 GiB`."""
        __tracebackhide__ = True
        from bench.units import exact_bytes, parse_bytes

        most = parse_bytes(size) if isinstance(size, str) else size
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
        if self._request.config.getoption(OPTION):
            if _or_fail(self.name, update_baselines, path, {self.name: self.guarded}):
                self._request.node.user_properties.append((_WRITTEN, str(path)))
            return
        allowed = _or_fail(self.name, Allowed.parse, allow)
        change = Change.of(self.name, _or_fail(self.name, read_baselines, path).get(self.name), self.guarded, allowed)
        if change.status is Course.SAME or (allow and change.status in (Course.ALLOWED, Course.SHRANK)):
            return
        if change.before is None:
            pytest.fail(f"{self.name}: no baseline in {path}. Write it with pytest {OPTION}, and commit it")
        lines = [f"{self.name}: peak memory {format_change(change.before_bytes, change.after_bytes)}"]
        lines += [f"  {line}" for line in change_lines(change)]
        pytest.fail("\n".join([*lines, f"If it is meant to change: pytest {OPTION}, and commit {path}"]))

    @property
    def baseline_path(self) -> Path:
        """`memory_baselines/<module>.<test>.json` beside the test's file: a file for each test, with all its calls."""
        node = self._request.node
        words = [node.path.stem, *([node.cls.__name__] if node.cls else []), node.name]
        full = ".".join(words)
        plain = re.sub(r"[^\w.,=\[\]-]", "_", full)[:150]
        digits = "" if plain == full else f"-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
        return Path(node.path.parent, FOLDER, f"{plain}{digits}.json")


def _builder(model: Any) -> Any:
    """What builds the model: of a module that is built, its copy."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return model
    import copy

    def build() -> Any:
        return copy.deepcopy(model)

    build.__name__ = type(model).__name__
    return build


def _or_fail(name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What a call returns; an error that a user can fix fails the test in one line."""
    __tracebackhide__ = True
    from bench.errors import BenchError

    try:
        return call(*arguments, **keywords)
    except BenchError as error:
        pytest.fail(f"{name}: {error}")
    except TypeError as error:
        if call.__name__ in str(error):  # a keyword that there is not
            pytest.fail(f"{name}: training_memory: {str(error).replace(call.__name__, 'training_memory', 1)}")
        raise
