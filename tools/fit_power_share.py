"""What of its power limit a GPU draws in training: `python tools/fit_power_share.py power_resnet50_zeus.csv`.

Prints the figures of `bench.estimators.choosing.POWER_SHARE`: the median of each GPU, of those, and the extremes.
"""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(path: Path) -> None:
    """Print the shares of the rows of PATH at the GPUs' own limits."""
    rows = pd.read_csv(path)
    rows = rows[~rows["note"].fillna("").str.contains("power limit lowered")]
    shares = rows["average_power_w"] / rows["power_limit_w"]
    medians = shares.groupby(rows["gpu"]).median()
    click.echo(medians.to_string())
    click.echo(f"{len(rows)} rows: {medians.median():.3f} ({shares.min():.3f} to {shares.max():.3f})")


if __name__ == "__main__":
    main()
