"""The training step of some of timm's models: `python timm_child.py TASK.json`, under the stub driver or without it.

Each item is `[architecture, optimizer, batch size, precision, device]`. Under the stub driver the answer is the peaks
of torch's real allocator over three steps in bytes, without it those of the trace; or `{"refused": reason}` where the
trace has none; or `{"failed": error}`. Each item runs in a process forked from one that has torch and timm loaded.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import timm
import torch
from torch.nn import functional

from bench.devices import load_device
from bench.errors import BenchError, describe_failure
from bench.estimators.events import build_events, replay_trace
from bench.estimators.layers import refusals_in_words
from bench.estimators.memory import Target
from bench.estimators.record import record_training
from tools.accuracy.stub_child import answer_each, read_peaks

STEPS = 3
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


class Training:
    """A model of timm at its own image size, one batch, and its step."""

    def __init__(self, architecture: str, optimizer: str, batch: int, precision: str, device: torch.device) -> None:
        """Build them on the device."""
        self.model = timm.create_model(architecture, num_classes=1000).to(device)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), lr=1e-3)
        images = torch.empty(batch, *self.model.default_cfg["input_size"]).to(device)
        self.batch = (images, torch.zeros(batch, dtype=torch.int64).to(device))
        self._bf16 = precision == "bf16"
        self._kept: Any = None

    def step(self) -> None:
        """One step; output and loss live until the next has ended."""
        self._kept = self._step()

    def _step(self) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16) if self._bf16 else contextlib.nullcontext():
            output = self.model(self.batch[0])
            loss = functional.cross_entropy(output, self.batch[1])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return output, loss


def run(item: list[Any]) -> dict[str, Any]:
    """The real allocator's peaks over three steps."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    training = Training(*item[:4], torch.device("cuda", 0))
    for _ in range(STEPS):
        training.step()
    return read_peaks("")


def estimate(item: list[Any]) -> dict[str, Any]:
    """The trace's peaks over three steps, without cuDNN's workspaces."""
    target = Target.of(load_device(item[4]), workspaces=False)
    with refusals_in_words():
        recording = record_training(
            lambda device: Training(*item[:4], device), STEPS, target.machine.compute_capability
        )
    peaks = replay_trace(build_events(recording, target.machine), target.allocator_config(), onward=False)
    return {
        "requested": peaks.cold_requested_bytes,
        "allocated": peaks.cold_allocated_bytes,
        "reserved": peaks.cold_reserved_bytes,
    }


def answer(item: list[Any]) -> dict[str, Any]:
    """The peaks of an item, or why there are none."""
    try:
        return (run if "BENCH_STUB_NAME" in os.environ else estimate)(item)
    except BenchError as reason:
        return {"refused": str(reason)}
    except Exception as error:  # noqa: BLE001  whatever a model raises is its answer
        return {"impossible": describe_failure(error)}


def leave_more_values_alone() -> None:
    """As `leave_values_alone`, of timm's own functions: what is never written takes no memory either."""
    weight_init: Any = timm.layers.weight_init  # models have copies of the names of the others, which call these
    weight_init._trunc_normal_ = lambda tensor, *_: tensor
    weight_init.variance_scaling_ = lambda tensor, **_: tensor


if __name__ == "__main__":
    leave_more_values_alone()
    answer_each(answer)
