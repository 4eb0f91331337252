"""Measure and estimate the memory and speed of training steps, side by side.

The one function that scripts need is `load`: every run of one or more result folders as a pandas frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd

__version__ = "0.1.0"


def load(*paths: str | PathLike[str]) -> pd.DataFrame:
    """Load result folders into one frame, one row per run (see `bench.store.load_results`).

    Args:
        *paths: Folders that `bench sweep` wrote, folders that hold several of them, or bundles of `bench bundle`.

    Returns:
        One row per run, planned runs that have not happened and skipped cases included; each with its case's axes,
        its measurement, its environment and the estimates for its case. Unknown values are null.

    Raises:
        bench.errors.StoreError: A path holds no results, or was written by a newer version.
    """
    from bench.bundles import open_results
    from bench.store import load_results

    with open_results(paths) as folders:
        return load_results(*folders)
