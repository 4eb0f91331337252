"""Which runs' energy counts."""

from __future__ import annotations

import numpy as np
import pandas as pd

UNCONFIRMED = "energy_unconfirmed"
"""The flag of a run whose counter and whose samples of power disagree; the worker sets it (`probes.gpu_monitor`)."""


def counted_energy_j(runs: pd.DataFrame) -> np.ndarray:
    """Joules of each run's measured window, shape `(len(runs),)`; NaN where unknown, and where flagged `UNCONFIRMED`.

    Args:
        runs: Rows of results.
    """
    if "energy_window_j" not in runs:
        return np.full(len(runs), np.nan)
    energy = runs["energy_window_j"].to_numpy(dtype=float, na_value=np.nan)
    flagged = np.array([flags is not None and UNCONFIRMED in flags for flags in runs["flags"]], dtype=bool)
    return np.where(flagged, np.nan, energy)
