"""The layout of SchedTune's measurements (hadeelalbahar/SchedTune): the device's peak in MiB, context included.

Torchvision models at 224 x 224 in float32 on a torch of 2021; optimizer and version are not stated. SGD with momentum
fits best of the usual ones. Before torch 2.0 `zero_grad` kept the gradients and optimizers went parameter by parameter.
The oldest allocator rules known here (2.6) are taken, and no workspaces: the cuDNN of then cannot be asked, and what
the installed one says makes errors larger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.errors import BenchError
from bench.records import Choice, ImageSpec
from bench.validation.rows import (
    LARGEST_BYTES,
    MAX_BATCH_SIZE,
    Measured,
    TableLayout,
    TrainingLoop,
    choice,
    device_name,
    whole,
)

MIB = 1 << 20
_SIDE, _CLASSES = 224, 1000
_TORCH = (2, 6)
_OPTIMIZER = Choice.of("sgd_momentum", {"foreach": False})


def read(cells: Mapping[str, str], line: int, device: str | None) -> Measured:
    """A row; see `TableLayout.read`."""
    if not re.match(rf"{_SIDE}(?!\d)", cells["image_size"].strip()):
        raise BenchError(f'image_size: "{cells["image_size"][:40]}" is not {_SIDE}')
    model = choice(cells, "model")
    return Measured(
        line,
        re.sub(r"\d.*", "", model.name),
        model,
        _OPTIMIZER,
        whole(cells, "batch_size", MAX_BATCH_SIZE),
        ImageSpec(3, _SIDE, _SIDE, _CLASSES),
        device_name(_gpu(cells["gpu"])),
        whole(cells, "peak_mem_mib", LARGEST_BYTES // MIB) * MIB,
        "device",
        loop=TrainingLoop(keeps_gradients=True, workspaces="none", torch_version=_TORCH),
    )


def _gpu(text: str) -> str:
    """A name that devices go by: the file says `Tesla V100 16/32GB`, whose memory makes no difference here."""
    return "v100_32gb" if re.search(r"\bV100\b", text) else text.strip()


LAYOUT = TableLayout(
    "schedtune",
    "SchedTune's measurements: MiB on the device with the context",
    ("model", "batch_size", "peak_mem_mib", "gpu", "image_size"),
    read,
)
