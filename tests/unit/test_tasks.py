from __future__ import annotations

import os

import pytest

from bench.launchers.tasks import _see_only

NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("before", "uuid", "index", "after"),
    [
        ({}, "GPU-1", 1, {"CUDA_VISIBLE_DEVICES": "GPU-1"}),  # the UUID says which, whatever the place
        ({}, None, None, {}),
        ({}, None, 0, {}),
        ({}, None, 2, {"CUDA_VISIBLE_DEVICES": "2"}),
        ({"CUDA_VISIBLE_DEVICES": "5,7"}, None, 1, {"CUDA_VISIBLE_DEVICES": "7"}),
        ({"HIP_VISIBLE_DEVICES": "3, 4"}, None, 1, {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "4"}),
    ],
)
def test_a_child_sees_the_one_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], uuid: str | None, index: int | None, after: dict[str, str]
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    _see_only(uuid, index)
    found = {name: os.environ[name] for name in NAMES if name in os.environ}
    for name in NAMES:  # what the function set is not monkeypatch's to undo
        os.environ.pop(name, None)
    assert found == after
