"""What torch may round the operands of float32 products to: one state behind two sets of switches.

Since 2.9 torch has a switch for each backend and operation (`torch.backends.*.fp32_precision`) beside `allow_tf32` and
`set_float32_matmul_precision`. Where code sets one of each kind, reading the older raises RuntimeError, and the older
ones do not undo what `torch.backends.fp32_precision` sets for convolutions (pytorch/pytorch #179445; the note on
TensorFloat-32 in torch's documentation). So all are set, and the newer ones are read where torch has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

Rounded = Literal["ieee", "tf32", "bf16"]
"""float32's own arithmetic (IEEE 754), or what operands are rounded to; torch's names."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """What is in force for each kind of product.

    Attributes:
        matmul: On a GPU: cuBLAS.
        conv: On a GPU: cuDNN.
        rnn: On a GPU: cuDNN's recurrent layers.
        cpu_matmul: oneDNN.
        cpu_conv: oneDNN.
        cpu_rnn: oneDNN.
    """

    matmul: Rounded = "ieee"
    conv: Rounded = "ieee"
    rnn: Rounded = "ieee"
    cpu_matmul: Rounded = "ieee"
    cpu_conv: Rounded = "ieee"
    cpu_rnn: Rounded = "ieee"

    def on(self, kind: str) -> dict[str, Rounded]:
        """By what the products are called in messages, those of a kind of device."""
        if kind == "cpu":
            return {"matrix products": self.cpu_matmul, "convolutions": self.cpu_conv, "recurrent layers": self.cpu_rnn}
        return {"matrix products": self.matmul, "convolutions": self.conv, "recurrent layers": self.rnn}


def asked_of(precision: str) -> Rounding:
    """What a case of this precision computes with: TF32 on a GPU for `tf32`, float32's own arithmetic otherwise."""
    return Rounding("tf32", "tf32", "tf32") if precision == "tf32" else Rounding()


@contextlib.contextmanager
def rounded_for(precision: str) -> Iterator[None]:
    """What `asked_of` says, for the duration of the context; then what was in force before."""
    before = read_rounding()
    set_rounding(asked_of(precision))
    try:
        yield
    finally:
        set_rounding(before)


def read_rounding() -> Rounding:
    """What is in force now, by torch's switches; variables that libraries read are another matter."""
    backends = cast(Any, torch.backends)
    if _has_new_switches():
        found = (_known(switch.fp32_precision) for switch in _switches())
        return Rounding(*found)
    matmul, conv = (
        _known("tf32" if on else "ieee") for on in (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    )
    cpu = {"highest": "ieee", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
    return Rounding(matmul, conv, conv, _known(cpu))


def set_rounding(rounding: Rounding) -> None:
    """Set every switch, the older ones first, so that code that reads either finds the same.

    The older ones know one state of convolutions and recurrent layers; on torch before 2.9 that is `conv`.
    """
    backends = cast(Any, torch.backends)
    torch.set_float32_matmul_precision(
        {"ieee": "highest", "tf32": "high", "bf16": "medium"}[
            rounding.cpu_matmul if not _has_new_switches() else rounding.matmul
        ]
    )
    backends.cuda.matmul.allow_tf32 = rounding.matmul == "tf32"
    backends.cudnn.allow_tf32 = rounding.conv == "tf32"
    if _has_new_switches():
        wanted = (
            rounding.matmul,
            rounding.conv,
            rounding.rnn,
            rounding.cpu_matmul,
            rounding.cpu_conv,
            rounding.cpu_rnn,
        )
        for switch, value in zip(_switches(), wanted, strict=True):
            switch.fp32_precision = value


def _has_new_switches() -> bool:
    return hasattr(torch.backends, "fp32_precision")


def _switches() -> tuple[Any, ...]:
    """Torch's own, in the order of `Rounding`."""
    backends = cast(Any, torch.backends)
    cudnn, onednn = backends.cudnn, backends.mkldnn
    return (backends.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn)


def _known(value: str) -> Rounded:
    """`none` leaves float32 as it is."""
    return "ieee" if value == "none" else cast(Rounded, value)
