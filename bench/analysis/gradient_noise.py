"""The gradient noise scale of each case with its interval, and what a batch size is worth beside it.

With a noise scale N, a step over B samples makes the share 1 / (1 + N / B) of the progress that a step over unlimited
samples would make, and a training takes 1 + B / N times the fewest samples that any batch size takes (McCandlish et
al., arXiv 1812.06162, section 2). `useful_samples_per_s` is throughput over the latter: it grows with the batch size
for as long as throughput grows faster than waste.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.cases import GROUP, last_attempts
from bench.stats import mean_interval

_COLUMNS = ("scale", "low", "high", "basis", "count", "cost_s", "images", "notes", "useful_samples_per_s")


def gradient_noise(frame: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """The cases whose gradient noise was measured, in the order of `summary` and with its columns.

    The estimates of |G|^2 and tr(Sigma) are averaged over the processes before the ratio is taken; the interval is a
    jackknife on its logarithm, over processes where there are several. Within a single process it is over steps, and
    says nothing about another seed.

    Args:
        frame: From `bench.load`.
        summary: From `summarise_cases`.

    Returns:
        Further columns: `scale` in samples (the ratio of the means) with `low` and `high` (95 %; null where there is no
        interval), `basis` (`processes` or `steps`) and `count` of them, `cost_s` (the longest pass), `images` (`files`
        or `synthetic`) and `notes` (distinct, sorted), `useful_samples_per_s`; empty where nothing was measured.
    """
    if "gradient_noise_cost_s" not in frame:
        return summary.iloc[:0].reindex(columns=[*summary.columns, *_COLUMNS])
    runs = last_attempts(frame.reset_index(drop=True))
    runs = runs[runs["gradient_noise_cost_s"].notna()]
    found = {key: _of_case(rows) for key, rows in runs.groupby(list(GROUP), sort=False, dropna=False)}
    keys = list(zip(*(summary[name] for name in GROUP), strict=True))
    chosen = summary[[key in found for key in keys]].reset_index(drop=True)
    values = pd.DataFrame([found[key] for key in keys if key in found], columns=list(_COLUMNS[:-1]))
    joined = pd.concat([chosen, values], axis=1)
    scale = pd.to_numeric(joined["scale"])
    useful = joined["samples_per_s"] / (1 + joined["batch_size"].astype(float) / scale.where(scale > 0))
    return joined.assign(useful_samples_per_s=useful)


def ratio_interval(traces: Sequence[float], g2s: Sequence[float]) -> tuple[float, float | None, float | None]:
    """`mean(traces) / mean(g2s)` with the ends of its 95 % interval, by the jackknife on the logarithm.

    Args:
        traces: Estimates of tr(Sigma), independent of each other.
        g2s: Estimates of |G|^2 beside them.

    Returns:
        NaN where a mean is not positive; no ends for a single estimate, or where leaving one out changes the sign.
    """
    trace, g2 = np.asarray(traces, dtype=float), np.asarray(g2s, dtype=float)
    count = len(trace)
    if trace.mean() <= 0 or g2.mean() <= 0:
        return math.nan, None, None
    ratio = float(trace.mean() / g2.mean())
    if count < 2:
        return ratio, None, None
    without = np.column_stack([trace.sum() - trace, g2.sum() - g2])
    if (without <= 0).any():
        return ratio, None, None
    logs = np.log(without[:, 0] / without[:, 1])
    interval = mean_interval((count * math.log(ratio) - (count - 1) * logs).tolist())
    if interval.low is None or interval.high is None:
        return ratio, None, None
    reach = (interval.high - interval.low) / 2  # about the ratio itself: the jackknife's middle is noisier
    return ratio, ratio * math.exp(-reach), ratio * math.exp(reach)


def _of_case(rows: pd.DataFrame) -> dict[str, Any]:
    measured = rows[rows["gradient_noise_g2"].notna()]
    basis = "processes" if len(measured) > 1 else "steps"
    column = {"processes": "gradient_noise_{}", "steps": "gradient_noise_{}_values"}[basis]
    traces, g2s = (
        measured[column.format(name)].tolist() if basis == "processes" else _raw(measured, column.format(name))
        for name in ("trace", "g2")
    )
    scale, low, high = ratio_interval(traces, g2s) if len(traces) else (math.nan, None, None)
    return {
        "scale": scale,
        "low": low,
        "high": high,
        "basis": basis,
        "count": len(traces),
        "cost_s": float(rows["gradient_noise_cost_s"].max()),
        "images": _distinct(rows["gradient_noise_data_source"]),
        "notes": _distinct(rows["gradient_noise_note"]),
    }


def _raw(measured: pd.DataFrame, column: str) -> list[float]:
    """The values of the steps of the one process that measured; empty where none did."""
    return list(measured[column].iloc[0]) if len(measured) else []


def _distinct(values: pd.Series) -> str:
    return "; ".join(sorted({str(value) for value in values.dropna()}))
