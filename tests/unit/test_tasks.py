from __future__ import annotations

import os

import pytest

from bench.errors import DeviceError
from bench.tasks import _see_only

NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("before", "uuid", "index", "after"),
    [
        ({}, "GPU-1", 1, {"CUDA_VISIBLE_DEVICES": "GPU-1"}),  # the UUID says which, whatever the place
        ({}, None, None, {}),
        ({}, None, 0, {}),
        ({}, None, 2, {"CUDA_VISIBLE_DEVICES": "2"}),
        ({"CUDA_VISIBLE_DEVICES": "5,7"}, None, 1, {"CUDA_VISIBLE_DEVICES": "7"}),
        ({"CUDA_VISIBLE_DEVICES": "5 6, 7;8,x"}, None, 1, {"CUDA_VISIBLE_DEVICES": "7"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,0"}, None, 1, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        ({"CUDA_VISIBLE_DEVICES": "0x1,+2,3"}, None, 2, {"CUDA_VISIBLE_DEVICES": "3"}),
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


@pytest.mark.parametrize("value", ["0 1", "0;1", "0,-1,1", "1,1", ""])
def test_a_gpu_that_the_variable_does_not_name_is_refused_rather_than_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(DeviceError, match="cuda:1: CUDA_VISIBLE_DEVICES"):
        _see_only(None, 1)
