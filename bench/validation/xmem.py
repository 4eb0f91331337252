"""The layout of xMem's evaluation (Stone-ResearchLife/xMem): NVML's peak less its first record, torch 2.6, CUDA 12.4.

The loop (perf_estimator/trainer/train_loop.py there): gradients go before the batch is loaded (mode 0, taken where the
mode is blank) or between loss and backward (mode 1), or never (other modes); the loop's variables let go of the last
batch before the next is loaded; outputs, loss, and values and indices of the outputs' maximum live until replaced.

The monitor starts as the model moves to the device. Its first record is taken to come after model and optimizer state
made at once: where weights weigh something (ConvNeXt), rows are lower than the step's peak by about their size.
Convolutions of 1 x 1 are taken to run without a workspace under torch 2.6's cuDNN 9.1, which the peaks speak for: with
what cuDNN 9.26 would take for them the median error is half as large again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.errors import BenchError, UnknownNameError
from bench.records import Choice, ImageSpec
from bench.validation.rows import (
    LARGEST_BYTES,
    MAX_BATCH_SIZE,
    MAX_IMAGE_SIZE,
    Measured,
    TableLayout,
    TrainingLoop,
    ZeroGrad,
    choice,
    device_name,
    whole,
)

_MODELS = {"MnasNet": "mnasnet1_0", "MobeNetV3Large": "mobilenet_v3_large", "MobeNetV3Small": "mobilenet_v3_small"}
_TEN_CLASSES = ("mnasnet1_0", "mobilenet_v3_large", "mobilenet_v3_small")
_MODES: dict[str, ZeroGrad] = {"": "before_batch", "0": "before_batch", "1": "before_backward"}
_TORCH = (2, 6)
_PUBLISHED = {
    "xmem_est_bytes": "xMem",
    "dnnmem_est_bytes": "DNNMem",
    "schedtune_est_bytes": "SchedTune",
    "llmem_est_bytes": "LLMem",
}


def read(cells: Mapping[str, str], line: int, device: str | None) -> Measured | None:
    """A row; see `TableLayout.read`. Rows of families other than `cnn`, and those out of memory, are not cases."""
    if cells["family"] != "cnn" or cells["real_oom"].strip().casefold() == "true":
        return None
    model = _model(cells["model"].strip())
    size = re.match(r"(\d{1,5})x(\d{1,5})x3\b", cells["input"].strip())
    if size is None or not 0 < int(size[1]) <= MAX_IMAGE_SIZE or size[1] != size[2]:
        raise BenchError(f'input: "{cells["input"][:40]}" must have the form 86x86x3')
    side = int(size[1])
    mode = cells["zero_grad_mode"].strip().removesuffix(".0")
    return Measured(
        line,
        re.sub(r"[\d_].*", "", model.name) or model.name,
        model,
        choice({"optimizer": cells["optimizer"].casefold()}, "optimizer"),
        whole(cells, "batch_size", MAX_BATCH_SIZE),
        ImageSpec(3, side, side, 10 if model.name in _TEN_CLASSES else 1000),
        device_name(cells["gpu"]),
        whole(cells, "ground_nvml_bytes", LARGEST_BYTES),
        "device",
        after_setup=True,
        capacity_bytes=whole(cells, "gpu_total_bytes", LARGEST_BYTES),
        loop=TrainingLoop(_MODES.get(mode, "never"), keeps_maximum=True, workspaces="spatial", torch_version=_TORCH),
        published=_published(cells),
    )


def _published(cells: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """The estimates of xMem and of those it was compared with, where the row has them."""
    filled = [name for name in _PUBLISHED if cells.get(name, "").strip()]
    whole_bytes = {name: cells[name].partition(".")[0] for name in filled}  # some are fractions of a byte
    return tuple((_PUBLISHED[name], whole(whole_bytes, name, LARGEST_BYTES)) for name in filled)


def _model(text: str) -> Choice:
    """Torchvision's name for one of xMem's: `ConvNeXtTiny` is `convnext_tiny`."""
    if text in _MODELS:
        return Choice(_MODELS[text])
    plain = text.casefold()
    split = re.sub(r"^(convnext|regnet[xy]|mobilenet)(?=.)", r"\1_", plain)
    name = re.sub(r"^regnet([xy])_", r"regnet_\1_", split)
    try:
        return choice({"model": name}, "model")
    except UnknownNameError:
        return choice({"model": text}, "model")


LAYOUT = TableLayout(
    "xmem",
    "xMem's evaluation: NVML's peak less its first record, torch 2.6",
    (
        "family",
        "model",
        "optimizer",
        "batch_size",
        "input",
        "zero_grad_mode",
        "gpu",
        "gpu_total_bytes",
        "ground_nvml_bytes",
        "real_oom",
    ),
    read,
)
