"""The stub driver as a fixture; tests that ask for it are skipped, with the reason, where it cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from .stub import StubDriver, StubUnavailable, build_stub


@pytest.fixture(scope="session")
def stub_driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StubDriver:
    """The compiled stub driver, kept in pytest's cache between sessions."""
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("stub_driver")) if cache is not None else tmp_path_factory.mktemp("stub_driver")
    try:
        return build_stub(folder)
    except StubUnavailable as reason:
        pytest.skip(str(reason))
