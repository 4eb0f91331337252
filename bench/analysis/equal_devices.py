"""How far equal devices differ: the same cases on cards of one model, in one host and under one software.

Cards of one model differ by a percent or more in speed, for their silicon, their place in the case and the air there.
A sweep on several of them has each case on some; which card was how fast follows from all cases together. The
logarithm of a rate is taken to be the case's plus the card's, and the card's part is found by least squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from bench.records import SPREADS, Status
from bench.stats import CONFIDENCE

_SWEEPS = 200  # over cases and cards in turn, which ends where both agree
_TOLERANCE = 1e-10
_KIND = ("gpu_name", "cpu_model", "driver_version", "torch_version", "power_limit_w", "parallel")
_CARDS = SPREADS["hosts"]


@dataclass(frozen=True, slots=True)
class Card:
    """One of several equal devices.

    Attributes:
        name: The beginning of its UUID's hash, or its slot; with the host's where there are several.
        runs: That were timed there.
        ratio: Its speed, as a ratio to the geometric mean of the cards.
        low: The lower end of the ratio's interval; None where runs say nothing of their spread.
        high: The upper end.
    """

    name: str
    runs: int
    ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class EqualDevices:
    """Devices of one kind.

    Attributes:
        name: Of the kind.
        cards: Each, the fastest first.
        cases: That ran on several of them.
    """

    name: str
    cards: tuple[Card, ...]
    cases: int

    @property
    def spread_frac(self) -> float:
        """How much faster the fastest is than the slowest."""
        return self.cards[0].ratio / self.cards[-1].ratio - 1


def equal_devices(frame: pd.DataFrame) -> list[EqualDevices]:
    """What the planned runs of a frame say of equal devices; empty where no case ran on two.

    Args:
        frame: As `bench.load` gives it.
    """
    timed = frame[frame["planned"] & (frame["status"] == Status.OK) & (frame["samples_per_s"] > 0)]
    kinds = [name for name in _KIND if name in timed]
    return list(_found(timed, kinds)) if len(timed) else []


def _found(timed: pd.DataFrame, kinds: list[str]) -> Iterator[EqualDevices]:
    for _, runs in timed.groupby(kinds, dropna=False, sort=True):
        names = _card_names(runs)
        cases = runs["case_key"] + "/" + runs["protocol_key"] + "/" + runs["code_key"]
        shared = names.groupby(cases).transform("nunique") > 1
        if not shared.any():
            continue
        rates = np.log(runs.loc[shared, "samples_per_s"].to_numpy(dtype=float))
        cards = _fit(rates, pd.factorize(cases[shared])[0], *pd.factorize(names[shared], sort=True))
        told = runs.iloc[0]
        kind = told["gpu_name"] if pd.notna(told["gpu_name"]) else told["cpu_model"]
        yield EqualDevices(str(kind), cards, int(cases[shared].nunique()))


def _card_names(runs: pd.DataFrame) -> pd.Series:
    """What each run's device is called among those of its kind."""
    columns = [name for name in _CARDS if name in runs and runs[name].notna().any()]
    if runs["host_hash"].nunique() < 2 and len(columns) > 1:
        columns.remove("host_hash")
    parts = [runs[name].astype(object).where(runs[name].notna(), "").astype(str) for name in columns]
    names = [" on host ".join(part[:12] for part in row if part) for row in zip(*parts, strict=True)]
    return pd.Series(names or [""] * len(runs), index=runs.index)


def _fit(rates: np.ndarray, case: np.ndarray, card: np.ndarray, names: pd.Index) -> tuple[Card, ...]:
    """The part of each card in the logarithms of rates, with Student's t interval on what is left over."""
    counts = np.bincount(card)
    effect = np.zeros(len(names))
    for _ in range(_SWEEPS):
        own = _means(rates - effect[card], case)
        found = _means(rates - own[case], card)
        found -= found.mean()
        if np.abs(found - effect).max() < _TOLERANCE:
            break
        effect = found
    own = _means(rates - effect[card], case)
    left = rates - own[case] - effect[card]
    freedom = len(rates) - len(own) - len(effect) + 1
    spread = float(np.sqrt((left**2).sum() / freedom)) if freedom > 0 else None
    quantile = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) if freedom > 0 else 0.0
    made = []
    for at, name in enumerate(names):
        reach = None if spread is None else quantile * spread / np.sqrt(counts[at])
        ends = (None, None) if reach is None else (float(np.exp(effect[at] - reach)), float(np.exp(effect[at] + reach)))
        made.append(Card(str(name), int(counts[at]), float(np.exp(effect[at])), *ends))
    return tuple(sorted(made, key=lambda item: (-item.ratio, item.name)))


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.bincount(group, weights=values) / np.bincount(group)
    return found
