"""Compare the device files' peak rates with measured products: `python tools/check_peaks.py gemm_tflops.csv`.

The file has the columns `gpu`, `precision` (`fp32`, `tf32`, `fp16`, `bf16`) and `tflops`. Prints, for each device and
precision, the best measured rate as a share of the peak, the highest first. Chips reach 50 to 95 %. A share above 100 %
has one of three reasons: boards of GeForce run above the rated boost clock (up to 17 % on the RTX 5090), the owner has
overclocked the board, or the file is wrong; above `IMPLAUSIBLE` it is the file, and the exit code is 1.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pandas as pd

from bench.devices import Device, load_device, match_device

IMPLAUSIBLE = 1.25
"""Of the peak. A sparse rate taken for a dense one, or GeForce's fp16 with accumulation in fp16, is off by 2."""

PRECISIONS = {"fp32": "float32", "tf32": "tf32", "fp16": "fp16", "bf16": "bf16"}


def compare_peaks(measured: pd.DataFrame) -> pd.DataFrame:
    """Best measured rates beside the peaks of the device files.

    Args:
        measured: With `gpu`, `precision` and `tflops`, one measurement a row.

    Returns:
        `device`, `precision`, `measured_flop_per_s`, `peak_flop_per_s`, `share`, the highest share first. Names without
        a device file and precisions without a peak are left out.
    """
    rows = []
    for (gpu, precision), group in measured.groupby(["gpu", "precision"], sort=False):
        device = _device(str(gpu))
        peak = device and precision in PRECISIONS and device.peak_flop_per_s(PRECISIONS[str(precision)])
        if device and peak:
            best = 1e12 * float(group["tflops"].max())
            rows.append((device.name, str(precision), best, peak, best / peak))
    table = pd.DataFrame(
        rows, columns=["device", "precision", "measured_flop_per_s", "peak_flop_per_s", "share"]
    ).sort_values("share", ascending=False, kind="stable")
    return table.drop_duplicates(["device", "precision"]).reset_index(drop=True)


def _device(gpu: str) -> Device | None:
    """The device of a name as people write it, with the memory behind: `NVIDIA RTX 4090 24GB`, `Tesla T4 16GB`."""
    bare = re.sub(r"\s+\d+\s*GB?$", "", gpu)
    found = match_device(gpu) or match_device(bare)
    return found or (load_device("p100") if "P100 PCIE" in gpu else None)


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(path: Path) -> None:
    """Print the table, and fail where a measured rate is far above its peak."""
    table = compare_peaks(pd.read_csv(path))
    click.echo(table.to_string(index=False, formatters={"share": "{:.0%}".format}))
    wrong = table[table["share"] > IMPLAUSIBLE]
    if len(wrong):
        click.echo(f"{len(wrong)} rates are above {IMPLAUSIBLE:.0%} of the peak: check those device files", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
