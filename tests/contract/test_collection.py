"""Collecting tests is quick: it loads none of the libraries that take seconds."""

from __future__ import annotations

import pytest

from tests import late


def test_no_test_file_loads_a_heavy_library_when_it_is_collected(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.stash[late.LOADED] == []


def test_what_waits_is_loaded_before_tests_run() -> None:
    import torch

    assert not isinstance(torch, late.LateModule)
    assert torch.zeros(1).item() == 0.0
