"""Other projects' training loops, for `record_training`. Torch is imported where it is used, in the child."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bench import catalog
from bench.errors import Unsupported
from bench.records import ImageSpec
from bench.validation.rows import Loop, Measured

if TYPE_CHECKING:
    import torch


class ForeignTraining:
    """A model, its optimizer and a loop that loads a batch each step; see `trace.Training`."""

    def __init__(self, row: Measured, batch_size: int, device: torch.device) -> None:
        """Build the row's model and optimizer on the device, the model first.

        Raises:
            Unsupported: The model cannot take these images, or the optimizer cannot train it.
        """
        from torch import nn

        entry = catalog.model(row.model.name)
        if reason := entry.skip_reason(row.images, row.model.options):
            raise Unsupported(reason)
        self.model: nn.Module = entry.build(row.images, **row.model.options).train().to(device)
        optimizer = catalog.optimizer(row.optimizer.name)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        shapes = [tuple(parameter.shape) for parameter in parameters]
        if optimizer.refuse_reason is not None and (reason := optimizer.refuse_reason(shapes, row.optimizer.options)):
            raise Unsupported(reason)
        self.optimizer = optimizer.build(parameters, **row.optimizer.options)
        self.batch: tuple[torch.Tensor, ...] = ()
        self._loss_of = nn.CrossEntropyLoss()
        self._loop, self._images, self._batch_size, self._device = row.loop or Loop(), row.images, batch_size, device
        self._output: torch.Tensor | None = None
        self._loss: torch.Tensor | None = None
        self._maximum: object = None

    def step(self) -> None:
        """One turn of the loop: each name lets go of its last value when the new one is there, the batch before."""
        if self._loop.zero_grad == "before_batch":
            self.optimizer.zero_grad(set_to_none=not self._loop.keeps_gradients)
        self.batch = ()
        self.batch = _load(self._images, self._batch_size, self._device)
        self._output = self.model(self.batch[0])
        self._loss = self._loss_of(self._output, self.batch[1])
        if self._loop.zero_grad == "before_backward":
            self.optimizer.zero_grad(set_to_none=not self._loop.keeps_gradients)
        self._loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self.optimizer.step()
        if self._loop.keeps_maximum:
            self._maximum = self._output.max(1)


def _load(images: ImageSpec, batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    pixels = torch.empty(batch_size, *images.shape)
    return pixels.to(device), torch.zeros(batch_size, dtype=torch.int64).to(device)


def building(row: Measured, batch_size: int) -> Callable[[torch.device], ForeignTraining]:
    """What `record_training` wants: a function of the device."""
    return lambda device: ForeignTraining(row, batch_size, device)
