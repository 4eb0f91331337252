"""The GPUs that are visible are those that torch sees, however the variable is written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bench.probes.nvml import Gpu, visible_entries, visible_gpus

UUIDS = ("GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-bbbb3333-0000", "GPU-bbbb3333-1111")
BOARDS = tuple(Gpu(uuid, index=index) for index, uuid in enumerate(UUIDS))
FORMS = [
    "0 1",
    "0;1",
    " 0",
    "0,",
    ",0",
    "-1",
    "0,-1,1",
    "0,0",
    "00,0",
    "GPU-aaaa1",
    "GPU-aaaa",
    "GPU-bbbb3333-1,GPU-aaaa2",
    "GPU-aaaa1,0",
    "0,GPU-aaaa1",
    "MIG-1",
    "MIG-1,MIG-1",
    "0x1",
    "1e3",
    "foo,0",
    "",
    " ",
    "3,9,0",
    "1gpu2,2ampere",
    "+1,1",
    "-0",
    "1.5",
    "1:2",
    "\t2\n",
    "2\x0b",
    "gpu-aaaa1",
    " GPU-aaaa1",
    "GPU-aaaa1, GPU-bbbb3333-0",
    "all",
    "0-3",
]

written = st.lists(
    st.one_of(
        st.sampled_from(["0", "1", "2", "3", "9", "-1", "+1", "0x1", "1e3", "", " ", "foo", "GPU-", "MIG-1"]),
        st.sampled_from(UUIDS).flatmap(lambda uuid: st.integers(3, len(uuid)).map(lambda end: uuid[:end])),
        st.text("0123456789 +-;:.xGPUMIG-abc", max_size=8),
    ),
    max_size=5,
).flatmap(lambda parts: st.sampled_from([",", ", ", " ", ";"]).map(lambda between: between.join(parts)))


def by_torch(value: str) -> tuple[tuple[str, ...], list[int] | None]:
    """The entries that torch's own parser finds, and the boards that it counts; None where it asks the driver."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = value
    try:
        entries = torch.cuda._parse_visible_devices()
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    told = tuple(map(str, entries))
    if told and told[0].startswith("MIG-"):
        return told, None
    if told and told[0].startswith("GPU-"):
        return told, torch.cuda._transform_uuid_to_ordinals(list(told), list(UUIDS))
    return told, list(_there(map(int, told)))


def _there(indices: Iterator[int]) -> Iterator[int]:
    for index in indices:
        if index >= len(UUIDS):
            return
        yield index


def check(value: str) -> None:
    entries, boards = by_torch(value)
    assert visible_entries(value) == entries
    if boards is not None:
        assert [gpu.index for gpu in visible_gpus(BOARDS, value)] == boards


@pytest.mark.parametrize("value", FORMS)
def test_each_form_is_read_as_torch_reads_it(value: str) -> None:
    check(value)


@given(written)
@example("0 1")
def test_any_value_is_read_as_torch_reads_it(value: str) -> None:
    parts = [part.strip() for part in value.split(",")]
    if any(part[:1] in ("+", "-") and not part[1:2].isdigit() for part in parts):
        return  # torch itself ends in a ValueError
    check(value)
