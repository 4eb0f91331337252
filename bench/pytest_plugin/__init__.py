"""Pytest plugin: the GPU memory of a training step as an assertion, on a machine without a GPU.

    def test_memory(training_memory):
        training_memory(build, (3, 224, 224), optimizer="adamw", batch_size=32).assert_unchanged()

The fixture `training_memory` traces a step; the marker `training_memory(...)` gives keywords for all of a test's calls;
`pytest --update-memory-baselines` writes what is traced to `memory_baselines/` beside the test's file. Nothing but
pytest is imported before the fixture is used, and this file is kept short: every session of pytest loads it.
PYTEST_DONT_REWRITE: there are no assertions here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bench.pytest_plugin.memory import TrainingMemory

OPTION = "--update-memory-baselines"
MARKER = "training_memory"
WRITTEN = "memory baseline"
"""Name of the property of a test's report that holds the path of a baseline."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that writes baselines."""
    group = parser.getgroup("stepbench")
    group.addoption(OPTION, action="store_true", help="write the memory baselines of training_memory(...) anew")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(**keywords): keywords for each call of the fixture {MARKER} in this test: device, optimizer, ...",
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which baselines were written, by all workers of xdist together."""
    if config.getoption(OPTION):
        reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
        for path in sorted({value for report in reports for key, value in report.user_properties if key == WRITTEN}):
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
    from bench.pytest_plugin.memory import tracer

    return tracer(request, MARKER, OPTION, WRITTEN)
