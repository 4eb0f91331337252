"""Fit the constants of the roofline again: `python tools/fit_roofline.py FOLDER`.

The folder holds `op_latency_neusight.parquet`, `gpu_specs_neusight.csv` and `train_throughput_timm_rtx3090.csv`. Prints
the constants with their errors, in the sample and on families of models that were left out of the fit. Takes minutes.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import spearmanr

from bench.devices import Device, load_device
from bench.estimators.kept import machine_of, recording_of
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.roofline import CONSTANTS, Constants, Kernel, kernel_time_s, kernels_of
from bench.records import Case, Choice

LITTLE_POWER = ("NVIDIA L4", "Tesla P4", "Tesla T4")
"""75 W and less: their clocks under products lie far below the rated one, so they say nothing of kernels."""

TENSORS = {
    "add": 3,
    "mul": 3,
    "div": 3,
    "addu": 2,
    "mulu": 2,
    "divu": 2,
    "powu": 2,
    "gelu": 2,
    "relu": 2,
    "tanh": 2,
    "softmax": 2,
    "ln": 2,
}
"""How many tensors an operator reads and writes (`u`: with one number)."""

KINDS = dict.fromkeys(TENSORS, "elementwise") | {
    "softmax": "reduction",
    "ln": "normalisation",
    "conv2d_forward": "convolution",
    "linear": "matmul",
    "bmm": "matmul",
}
FAMILIES = (
    "resnext",
    "resnet",
    "densenet",
    "vgg",
    "inception",
    "mnasnet",
    "mobilenet",
    "efficientnet_v2",
    "efficientnet",
    "regnet",
    "convnext",
    "swin",
    "vit",
)


def main(folder: Path) -> None:
    """Fit on single operators, then on steps, and print."""
    constants = fit_operators(load_operators(folder), CONSTANTS)
    steps = load_steps(folder)
    cases = [step_case(row) for row in steps.itertuples()]
    kernels = load_kernels(cases)
    families = np.array([next(name for name in FAMILIES if str(case.model).startswith(name)) for case in cases])
    measured = (steps.train_batch_size / steps.train_samples_per_sec).to_numpy()
    every = np.ones(len(cases), dtype=bool)
    fitted = fit_steps(cases, kernels, measured, every, constants)
    click.echo(fitted)
    report("in the sample", step_times(cases, kernels, fitted), measured, cases)
    left_out = np.zeros(len(cases))
    for family in sorted(set(families)):
        held = families == family
        without = fit_steps(cases, kernels, measured, ~held, constants)
        left_out[held] = step_times(cases, kernels, without)[held]
    report("family left out", left_out, measured, cases)


def load_operators(folder: Path) -> pd.DataFrame:
    """Single operators as kernels, with the specification of their GPU."""
    frame = pd.read_parquet(folder / "op_latency_neusight.parquet")
    frame = frame[frame.op.isin(KINDS)].join(pd.read_csv(folder / "gpu_specs_neusight.csv").set_index("gpu"), on="gpu")
    sizes = ["batch", "c_in", "c_out", "size", "kernel", "h", "m", "n", "k"]
    frame = frame.assign(**{name: frame[name].astype(float) for name in sizes}, kind=frame.op.map(KINDS)).reset_index(
        drop=True
    )
    pixels, window = frame.batch * frame["size"] ** 2, frame.kernel**2
    image = frame.kind == "convolution"
    frame["rows"] = np.where(image, pixels, frame.m)
    frame["columns"] = np.where(image, frame.c_out, frame.n)
    frame["depth"] = np.where(image, frame.c_in * window, frame.k)
    frame["products"] = np.where(image, 1.0, frame.batch)
    frame["flops"] = (2 * frame.rows * frame["columns"] * frame.depth * frame.products).fillna(0.0)
    product = frame.products * (
        frame.rows * frame["columns"] + frame.rows * frame.depth + frame["columns"] * frame.depth
    )
    moved = np.where(image, pixels * (frame.c_in + frame.c_out) + window * frame.c_in * frame.c_out, product)
    frame["nbytes"] = 4 * np.where(frame.h.notna(), frame.op.map(TENSORS) * frame.batch * frame.h, moved)
    return frame.assign(layout_bytes=0.0, shared=0.0, launches=1.0, window=np.where(image, window, 1.0)).fillna(
        {"rows": 0.0, "columns": 0.0, "depth": 0.0}
    )


def operator_times(frame: pd.DataFrame, constants: Constants) -> np.ndarray:
    """Seconds of each row by the roofline on its own GPU."""
    times = np.zeros(len(frame))
    for gpu, rows in frame.groupby("gpu"):
        first = rows.iloc[0]
        device = Device(
            name=str(gpu),
            gpu_name=str(gpu),
            kind="cuda",
            memory_bandwidth_bytes_per_s=first.bandwidth_gb_per_s * 1e9,
            peak_float32_flop_per_s=first.fp32_gflops * 1e9,
            multiprocessors=int(first.sms),
        )
        kernels = [
            Kernel(*values) for values in rows.assign(dtype="float32")[list(Kernel._fields)].itertuples(index=False)
        ]
        times[frame.index.get_indexer(rows.index)] = [
            kernel_time_s(kernel, device, "float32", "contiguous", constants) for kernel in kernels
        ]
    return times


def fit_operators(frame: pd.DataFrame, constants: Constants) -> Constants:
    """One class after another; memory and launch first, since all others lean on them."""
    for kind, names in (
        ("elementwise", ("memory_frac", "launch_s")),
        ("reduction", ("reduction_frac",)),
        ("normalisation", ("normalisation_frac",)),
        ("matmul", ("matmul_frac", "product_depth")),
        ("convolution", ("winograd_frac", "convolution_columns", "convolution_tiles")),
    ):
        rows = frame[(frame.kind == kind) & ~(frame.gpu.isin(LITTLE_POWER) & (frame.flops > 0))].reset_index(drop=True)
        measured = rows.latency_ms.to_numpy() * 1e-3
        constants = fit(
            names, constants, lambda tried, rows=rows, measured=measured: np.log(operator_times(rows, tried) / measured)
        )
        errors = np.abs(operator_times(rows, constants) / measured - 1)
        click.echo(f"{kind}: n {len(rows)}, median error {np.median(errors):.3f}, p90 {np.quantile(errors, 0.9):.3f}")
    return constants


def load_steps(folder: Path) -> pd.DataFrame:
    """Rows of timm of models that torchvision has, with torchvision's name."""
    tables = tomllib.loads((Path(__file__).parent / "timm_models.toml").read_text(encoding="utf-8"))
    frame = pd.read_csv(folder / "train_throughput_timm_rtx3090.csv")
    frame["torchvision"] = frame.model.map(tables["same"] | tables["nearly"])
    return frame.dropna(subset=["torchvision"]).reset_index(drop=True)


def step_case(row: Any) -> Case:
    """A row as the case that comes nearest to timm's protocol."""
    memory_format = "channels_last" if row.layout == "nhwc" else "contiguous"
    return Case(
        Choice("imagenet"),
        Choice(row.torchvision),
        Choice("sgd_momentum"),
        row.train_batch_size,
        "fp16",
        memory_format,
        image_size=row.train_img_size,
    )


def load_kernels(cases: Sequence[Case]) -> list[list[Kernel]]:
    """The kernels of each case's step, from recordings that are kept or made now."""
    machine = machine_of(load_device("rtx3090"), settings_in_force())
    return [[kernel for _, kernel in kernels_of(recording_of(case, machine))] for case in cases]


def step_times(cases: Sequence[Case], kernels: Sequence[Sequence[Kernel]], constants: Constants) -> np.ndarray:
    """Seconds of the device for each case."""
    device = load_device("rtx3090")
    pairs = zip(cases, kernels, strict=True)
    return np.array(
        [
            sum(kernel_time_s(kernel, device, case.precision, case.memory_format, constants) for kernel in found)
            for case, found in pairs
        ]
    )


def fit_steps(
    cases: Sequence[Case],
    kernels: Sequence[Sequence[Kernel]],
    measured: np.ndarray,
    used: np.ndarray,
    constants: Constants,
) -> Constants:
    """Depthwise and direct convolutions, and one factor a memory format, on the rows that are `used`."""
    chosen = [(case, found) for case, found, use in zip(cases, kernels, used, strict=True) if use]
    chosen_cases, chosen_kernels = [case for case, _ in chosen], [found for _, found in chosen]

    def errors(tried: Constants) -> np.ndarray:
        scaled = with_scales(tried, chosen_cases, chosen_kernels, measured[used])
        return np.log(step_times(chosen_cases, chosen_kernels, scaled) / measured[used])

    fitted = fit(("depthwise_frac", "direct_frac"), constants, errors, tolerance=0.01)
    return with_scales(fitted, chosen_cases, chosen_kernels, measured[used])


def with_scales(
    constants: Constants, cases: Sequence[Case], kernels: Sequence[Sequence[Kernel]], measured: np.ndarray
) -> Constants:
    """The factor of each memory format that makes its median error 0."""
    ratios = measured / step_times(cases, kernels, replace(constants, fp16_contiguous=1.0, fp16_channels_last=1.0))
    formats = np.array([case.memory_format for case in cases])
    scales = {f"fp16_{name}": float(np.median(ratios[formats == name])) for name in ("contiguous", "channels_last")}
    return replace(constants, **scales)


def fit(
    names: Sequence[str], start: Constants, errors: Callable[[Constants], np.ndarray], tolerance: float = 0.002
) -> Constants:
    """Least mean absolute error of logarithms over the constants `names`."""
    initial = np.log([getattr(start, name) for name in names])

    def with_values(values: np.ndarray) -> Constants:
        return replace(start, **dict(zip(names, map(float, np.exp(values)), strict=True)))

    simplex = np.vstack([initial, initial + 0.2 * np.eye(len(names))])
    found = minimize(
        lambda values: np.abs(errors(with_values(values))).mean(),
        initial,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": tolerance, "fatol": tolerance / 20},
    )
    return with_values(found.x)


def report(title: str, times: np.ndarray, measured: np.ndarray, cases: Sequence[Case]) -> None:
    """Errors of samples per second, and the correlation of ranks."""
    batch = np.array([case.batch_size for case in cases])
    for name in ("all", "contiguous", "channels_last"):
        rows = np.array([name in ("all", case.memory_format) for case in cases])
        error = measured[rows] / times[rows] - 1
        median, tail = np.quantile(np.abs(error), [0.5, 0.9])
        rank = spearmanr(batch[rows] / times[rows], batch[rows] / measured[rows])[0]
        click.echo(
            f"{title}, {name}: n {rows.sum()}, median error {median:.4f}, p90 {tail:.4f}, "
            f"bias {np.median(error):+.4f}, rank correlation {rank:.4f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
