"""What every test shares: a place of its own for locks and data, no colours, and no GPU unless it asks for one."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import late, sketches

# In a shell's background it is ignored, and whatever tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where no bytecode may lie beside the sources, pytest would rewrite every test file anew each time: keep it in its cache.
if sys.dont_write_bytecode:
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False

late.install()
gc.disable()  # until all is collected: what importing leaves behind is little


@pytest.fixture(autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from meeting each other, or the user's data and sweeps, in shared folders."""
    root: Path = tmp_path_factory.mktemp("places")
    monkeypatch.setenv("BENCH_LOCK_DIR", str(root / "locks"))
    monkeypatch.setenv("BENCH_DATA", str(root / "data"))
    monkeypatch.setenv("BENCH_TRACE_CACHE", "off")
    monkeypatch.setenv("BENCH_CALIBRATIONS", "off")
    monkeypatch.setenv("BENCH_FIGURES", "off")
    monkeypatch.setenv("BENCH_LOGS", str(root / "logs"))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    """Skip what needs a GPU where torch has none."""
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def sketched() -> Iterator[None]:
    """Reports of a whole test file have figures that are not painted, which takes most of a report's time."""
    with sketches.sketching():
        yield


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note for the test that looks at it what collecting has loaded."""
    gc.enable()
    session.config.stash[late.LOADED] = late.loaded()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Load what the collected tests wait for, lest its loading count as a test's own time."""
    if not session.config.option.collectonly:
        late.load_all()
