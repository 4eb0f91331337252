"""What every test shares: a place of its own for locks and data, no colours, and no GPU unless it asks for one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # so in a shell's background, and whatever tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from meeting each other, or the user's data and sweeps, in shared folders."""
    root: Path = tmp_path_factory.mktemp("places")
    monkeypatch.setenv("BENCH_LOCK_DIR", str(root / "locks"))
    monkeypatch.setenv("BENCH_DATA", str(root / "data"))
    monkeypatch.setenv("BENCH_TRACE_CACHE", "off")
    monkeypatch.setenv("BENCH_LOGS", str(root / "logs"))
    monkeypatch.setenv("NO_COLOR", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where torch has none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
