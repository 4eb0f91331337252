"""The training step of the oracle, run in a fresh process: `python step.py TASK.json FOLDER` (see stub.py).

For each case of the task it writes `FOLDER/<index>.json` and, with history, `FOLDER/<index>.npz`. It knows nothing of
the project: what it does is what a plain training script does, and it is the same as in recordings from real GPUs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch.utils._pytree import tree_leaves

ACTIONS = {"alloc": 0, "free_requested": 1, "free_completed": 2, "segment_alloc": 3, "segment_free": 4}
MARK, OTHER = 5, 9
OPTIMIZERS = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__ if name != "Optimizer"}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
STATISTICS = (
    "requested_bytes.all.current",
    "requested_bytes.all.peak",
    "allocated_bytes.all.current",
    "allocated_bytes.all.peak",
    "active_bytes.all.current",
    "active_bytes.all.peak",
    "reserved_bytes.all.current",
    "reserved_bytes.all.peak",
    "num_alloc_retries",
    "num_ooms",
)


def build_model(name: str, channels: int, size: int, classes: int) -> torch.nn.Module:
    """The founding MLP, a small model of each kind of parameter, one of matrices only, or one of torchvision."""
    if name == "mlp":
        layers = torch.nn.Linear(channels * size * size, 128), torch.nn.ReLU(), torch.nn.Linear(128, classes)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)
    if name == "conv":
        stem = torch.nn.Conv2d(channels, 64, (3, 5), padding=(1, 2)), torch.nn.BatchNorm2d(64), torch.nn.ReLU()
        head = torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(64 * 64, 257)
        return torch.nn.Sequential(*stem, *head, torch.nn.ReLU(), torch.nn.Linear(257, classes))
    if name == "matrices":
        sizes = (channels * size * size, 700, 300, classes)
        layers = [torch.nn.Linear(one, other, bias=False) for one, other in itertools.pairwise(sizes)]
        return torch.nn.Sequential(torch.nn.Flatten(), layers[0], torch.nn.ReLU(), *layers[1:])
    if predicts_masks(name):
        model: torch.nn.Module = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, aux_loss=name.startswith("fcn")
        )
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return model


def predicts_masks(name: str) -> bool:
    """Whether a model is for segmentation."""
    return name.startswith(("fcn", "deeplabv3", "lraspp"))


def loss_of(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """As in torchvision's references: classification/train.py and segmentation/train.py."""
    if isinstance(output, torch.Tensor):
        return F.cross_entropy(output, labels)
    losses = {name: F.cross_entropy(each, labels, ignore_index=255) for name, each in output.items()}
    return losses["out"] if len(losses) == 1 else losses["out"] + 0.5 * losses["aux"]


def build_optimizers(
    name: str, parameters: list[torch.nn.Parameter], settings: dict[str, Any]
) -> list[torch.optim.Optimizer]:
    """The optimizer of this name; for Muon also the AdamW that its documentation has train all but matrices."""
    if name != "muon":
        return [OPTIMIZERS[name](parameters, lr=1e-3, **settings)]
    matrices, others = ([p for p in parameters if (p.ndim == 2) is wanted] for wanted in (True, False))
    muon = torch.optim.Muon(matrices, lr=1e-3, **settings)
    return [muon, torch.optim.AdamW(others)] if others else [muon]


@contextlib.contextmanager
def directions_kept() -> Iterator[None]:
    """Have LBFGS keep each direction, as it does in training: under the stub all values are 0, and so is the curvature.

    The comparison is made, so that it takes the memory that it takes.
    """
    compare = torch.Tensor.__gt__

    def above(tensor: Any, other: Any) -> Any:
        found = compare(tensor, other)
        return bool(found) or True if isinstance(other, float) and other == 1e-10 else found

    torch.Tensor.__gt__ = above  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.__gt__ = compare  # type: ignore[method-assign]


class TrainingCase:
    """Model, optimizer and batch of one case on the device, and its step."""

    def __init__(self, case: list[Any]) -> None:
        name, (channels, size, classes), optimizer, settings, batch, self.precision, memory_format = case
        torch.manual_seed(42)
        model = build_model(name, channels, size, classes)
        layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
        self.model = model.to("cuda")
        if layout is torch.channels_last:
            self.model = self.model.to(memory_format=layout)
        self.optimizers = build_optimizers(optimizer, list(self.model.parameters()), settings)
        self.images = torch.randn(batch, channels, size, size).to("cuda").contiguous(memory_format=layout)
        labelled = (batch, size, size) if predicts_masks(name) else (batch,)
        self.labels = torch.randint(classes, labelled).to("cuda")
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision == "fp16")

    def step(self) -> tuple[Any, torch.Tensor] | None:
        """One optimizer step; the caller keeps what is returned until the next step has returned."""
        if isinstance(self.optimizers[0], torch.optim.LBFGS):
            with directions_kept():
                self.optimizers[0].step(self.evaluate)
            return None
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        half = AUTOCAST.get(self.precision)
        with torch.autocast("cuda", dtype=half) if half else contextlib.nullcontext():
            output = self.model(self.images)
            loss = loss_of(output, self.labels)
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return output, loss

    def evaluate(self) -> torch.Tensor:
        """A closure as torch's documentation of LBFGS has it; the last loss is kept until the next."""
        self.optimizers[0].zero_grad(set_to_none=True)
        half = AUTOCAST.get(self.precision)
        with torch.autocast("cuda", dtype=half) if half else contextlib.nullcontext():
            loss = loss_of(self.model(self.images), self.labels)
        loss.backward()
        self.loss = loss
        return loss

    def state_bytes(self) -> int:
        """What the optimizer keeps on the device."""
        values = tree_leaves([list(optimizer.state.values()) for optimizer in self.optimizers])
        return sum(value.nbytes for value in values if isinstance(value, torch.Tensor) and value.is_cuda)


def read_statistics() -> dict[str, int]:
    """The allocator's statistics in bytes (and counts)."""
    statistics = torch.cuda.memory_stats()
    return {key: statistics.get(key, 0) for key in STATISTICS}


def count_events() -> int:
    """Number of allocator events recorded so far."""
    return len(torch.cuda.memory._snapshot()["device_traces"][0])


def pack_events(trace: list[dict[str, Any]], marks: list[int]) -> dict[str, np.ndarray]:
    """Events as arrays, with a mark where each step ended."""
    low = min((event["addr"] for event in trace if event["action"] in ACTIONS), default=0)
    rows = []
    for index, event in enumerate([*trace, None]):
        rows.extend((MARK, 0, number) for number, at in enumerate(marks) if at == index)
        if event is not None:
            action = ACTIONS.get(event["action"], OTHER)
            rows.append((action, (event.get("addr", low) - low) // 512, event.get("size", 0)))
    columns = list(zip(*rows, strict=True))
    return {name: np.array(column, "i8") for name, column in zip(("action", "address", "bytes"), columns, strict=True)}


def run_case(
    case: list[Any], steps: int, history: bool, warmup_steps: int | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """Run one case in this process: its record and, with `history`, the allocator's events.

    Peaks start again after `warmup_steps`.
    """
    axes = ("model", "image", "optimizer", "settings", "batch_size", "precision", "memory_format")
    record: dict[str, Any] = {**dict(zip(axes, case, strict=True)), "status": "ok", "torch": torch.__version__}
    torch.cuda.init()
    if history:
        torch.cuda.memory._record_memory_history("all", context=None, max_entries=2_000_000)
    statistics, marks, kept = [], [], None
    try:
        training = TrainingCase(case)
        for number in range(steps + 1):
            if number:
                kept = training.step()
                torch.cuda.synchronize()
            statistics.append(read_statistics())
            marks.append(count_events() if history else 0)
            if number == warmup_steps:
                torch.cuda.reset_peak_memory_stats()
        record["optimizer_state_bytes"] = training.state_bytes()
    except torch.cuda.OutOfMemoryError as error:
        record.update(status="oom", message=str(error)[:300], at_oom=read_statistics())
    record["memory_stats"] = statistics
    record["free_total_after_steps"] = list(torch.cuda.mem_get_info())
    record["kept_bytes"] = sum(tensor.nbytes for tensor in tree_leaves(kept or ()))
    events = pack_events(torch.cuda.memory._snapshot()["device_traces"][0], marks) if history else None
    return record, events


def run_forked(index: int, case: list[Any], task: dict[str, Any], folder: Path) -> None:
    """Run one case in a child process that this one waits for; raises if the child fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            record, events = run_case(case, task["steps"], task["history"], task.get("warmup_steps"))
            if events is not None:
                np.savez_compressed(folder / f"{index}.npz", **events)
            (folder / f"{index}.json").write_text(json.dumps(record))
            code = 0
        except BaseException:  # noqa: BLE001  a forked child must not return into the parent's code
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"case {case} ended with wait status {status}")


def main() -> None:
    """Run every case of the task file."""
    task, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for index, case in enumerate(task["cases"]):
        run_forked(index, case, task, folder)


if __name__ == "__main__":
    main()
