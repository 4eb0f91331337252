"""What float32 products are said to be rounded to is what their numbers show, whoever set it and how."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.each import each

pytestmark = pytest.mark.gpu

EXACT, TF32 = 3e-5, (1e-4, 1.5e-3)
"""Root mean square errors over those of the products: of float32's own arithmetic (24 bits of significand, and what
convolutions by Winograd lose) at most, of TF32 (11 bits) between."""
BF16 = (8e-4, 6e-3)  # 8 bits, of the operands and of the product


def error(kind: str, dtype: str = "float32") -> float:
    """The root mean square error of a product over the root mean square of the product in float64.

    Of normal numbers, and long enough that errors are as the sizes of significands say.
    """
    random = torch.Generator("cuda").manual_seed(1)
    shapes = ((1024, 1024), (1024, 1024)) if kind == "matmul" else ((8, 64, 32, 32), (64, 64, 3, 3))
    one, two = (torch.randn(*shape, device="cuda", generator=random) for shape in shapes)
    rounded = [each.to(getattr(torch, dtype)) for each in (one, two)]
    if kind == "matmul":
        found, exact = rounded[0] @ rounded[1], one.double() @ two.double()
    else:
        found = torch.nn.functional.conv2d(*rounded)
        patches = torch.nn.functional.unfold(one.double(), 3)  # without cuDNN
        exact = (two.double().flatten(1) @ patches).view(found.shape)
    off = found.double() - exact
    return float((off.square().mean() / exact.square().mean()).sqrt())


def shown(kind: str) -> str:
    """What a product's numbers say that it was rounded to."""
    found = error(kind)
    return "ieee" if found < EXACT else "tf32" if TF32[0] < found < TF32[1] else f"neither: {found:.2g}"


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Switches as they were, after each test."""
    from bench.workload.rounding import read_rounding, set_rounding

    before = read_rounding()
    yield
    set_rounding(before)


def needs_tf32() -> None:
    if torch.cuda.get_device_capability() < (8, 0) or os.environ.get("NVIDIA_TF32_OVERRIDE"):
        pytest.skip("no TF32 here, or a variable that overrules it")


@each("kind", ["matmul", "conv"])
def test_each_precision_has_errors_of_its_size(kind: str) -> None:
    from bench.workload.rounding import rounded_for

    needs_tf32()
    with rounded_for("float32"):
        exact = error(kind)
        halved = error(kind, "bfloat16")
    with rounded_for("tf32"):
        rounded = error(kind)
    assert exact < EXACT
    assert TF32[0] < rounded < TF32[1]
    assert BF16[0] < halved < BF16[1]
    assert exact < rounded / 10 and rounded < halved


def _old(name: str) -> Callable[[], None]:
    def act() -> None:
        (torch.backends.cuda.matmul if name == "matmul" else torch.backends.cudnn).allow_tf32 = True

    return act


def _new(path: str) -> Callable[[], None]:
    def act() -> None:
        switch: Any = torch.backends
        for name in path.split(".") if path else ():
            switch = getattr(switch, name)
        switch.fp32_precision = "tf32"

    return act


WAYS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "allow_tf32 of matmul": _old("matmul"),
    "allow_tf32 of cuDNN": _old("cudnn"),
    "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("high"),
    "fp32_precision of all": _new(""),
    "fp32_precision of matmul": _new("cuda.matmul"),
    "fp32_precision of cuDNN": _new("cudnn"),
    "fp32_precision of convolutions": _new("cudnn.conv"),
}


@each("way", list(WAYS))
def test_what_is_read_back_is_what_the_numbers_show_after_a_model_set_a_switch(way: str) -> None:
    from bench.workload.rounding import asked_of, read_rounding, set_rounding

    needs_tf32()
    if way.startswith("fp32") and not hasattr(torch.backends, "fp32_precision"):
        return
    set_rounding(asked_of("float32"))
    WAYS[way]()
    told = read_rounding()
    assert (told.matmul, told.conv) == (shown("matmul"), shown("conv"))
    set_rounding(asked_of("float32"))
    assert (shown("matmul"), shown("conv")) == ("ieee", "ieee"), "a model's switch outlived what bench set"


OVERRIDDEN = """
from tests.gpu.test_rounding_on_gpu import shown
from bench.workload.rounding import asked_of, set_rounding
set_rounding(asked_of("tf32"))
print(shown("matmul"))
"""


def test_the_variable_that_switches_tf32_off_does_so_whatever_torch_says() -> None:
    needs_tf32()
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", OVERRIDDEN], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.strip() == "ieee", done.stdout + done.stderr[-2000:]
