"""Which torch build suits a driver and a card, for the remedies that `diagnosis` names.

Facts, all for the wheels of download.pytorch.org for Linux x86-64 (pytorch RELEASE.md, "PyTorch CUDA Support Matrix",
as of 2.6 to 2.14; issues 172352, 178665 and 190385 of pytorch/pytorch): a wheel runs on every driver of its CUDA's
major version or newer (CUDA Compatibility, "Minor Version Compatibility": 11 needs driver 450.80.02, 12 needs
525.60.13, 13 needs 580), and on cards of the architectures it was built for. `UV_TORCH_BACKEND` takes these names
(`uv pip install --help`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DRIVER_FOR_MAJOR = {11: "450.80.02", 12: "525.60.13", 13: "580"}


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """A flavour of torch's wheels; the capabilities are those that all its versions named here were built for."""

    backend: str
    cuda: tuple[int, int]
    torch: str
    oldest: tuple[int, int]
    newest: tuple[int, int]


BUILDS = (  # the one to prefer first
    TorchBuild("cu130", (13, 0), "torch>=2.9", (7, 5), (12, 1)),
    TorchBuild("cu126", (12, 6), "torch>=2.6,<2.15", (5, 0), (9, 0)),
    TorchBuild("cu128", (12, 8), "torch>=2.7,<2.12", (7, 5), (12, 1)),
    TorchBuild("cu118", (11, 8), "torch>=2.6,<2.8", (5, 0), (9, 0)),
)


def choose_build(driver_cuda: tuple[int, int] | None, capability: tuple[int, int] | None) -> TorchBuild | None:
    """The build to advise, or None where only a newer driver or another card would do.

    Args:
        driver_cuda: The newest CUDA that the driver runs, `(12, 4)`; None if unknown, which excludes nothing.
        capability: The card's compute capability, `(7, 0)` for a V100; None if unknown, which excludes nothing.
    """
    for build in BUILDS:
        runs = driver_cuda is None or build.cuda[0] <= driver_cuda[0]
        fits = capability is None or build.oldest <= capability <= build.newest
        if runs and fits:
            return build
    return None


def install_advice(build: TorchBuild | None) -> str:
    """One sentence on how to get `build`: with uv's automatic choice, and with the one named."""
    if build is None:
        return "No build of torch 2.6 or newer supports this driver and card: update the driver or use another card."
    return (
        f"Install a matching build: set `UV_TORCH_BACKEND=auto` or `UV_TORCH_BACKEND={build.backend}` before the "
        f"set-up command, or `UV_TORCH_BACKEND={build.backend} uv pip install --reinstall "
        f'"{build.torch}" torchvision` here.'
    )


def driver_for(cuda_version: str) -> str | None:
    """The oldest Linux driver that runs wheels of that CUDA version (`"13.2"`), or None if it is not known."""
    return _DRIVER_FOR_MAJOR.get(parse_cuda_version(cuda_version)[0])


def parse_cuda_version(text: str) -> tuple[int, int]:
    """`"12.6"` or `"12.6.3"` as `(12, 6)`."""
    numbers = [int(part) for part in re.findall(r"\d+", text)] + [0, 0]
    return numbers[0], numbers[1]


def runs_on(capability: tuple[int, int], arch_list: Iterable[str]) -> bool:
    """Whether code of `arch_list` runs on a card.

    `sm_XY` runs on cards of the same major version and the same or a higher minor one; `compute_XY` is PTX, which the
    driver compiles for every newer card; `sm_90a` runs on exactly that card, and `sm_100f` within its family, which is
    the same major version (CUDA C Programming Guide, "Compute Capability"; nvcc, "GPU Feature List").
    """
    return any(_arch_runs_on(capability, *match.groups()) for arch in arch_list if (match := _ARCH.fullmatch(arch)))


_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def _arch_runs_on(capability: tuple[int, int], kind: str, major: str, minor: str, suffix: str) -> bool:
    built = (int(major), int(minor))
    if suffix == "a":
        return capability == built
    if kind == "compute" and not suffix:
        return capability >= built
    return capability[0] == built[0] and capability[1] >= built[1]
