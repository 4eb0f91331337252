"""Without a device these tests are skipped before the fixtures that whole files share are made."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
