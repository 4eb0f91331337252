"""From estimates to an error table: one constant per GPU, fitted and cross-validated, and errors by GPU and family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.stats import ErrorSummary, relative_error, summarise_errors
from bench.validation.estimating import Estimated


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Errors of some rows.

    Attributes:
        device: Name, or `all`.
        family: Name, or `all`.
        constant_bytes: What was added to every estimate of a driver's peak: context and loaded modules, fitted on this
            device's rows; None if nothing was fitted.
        errors: With that constant; None if no row has an estimate.
        held_out: With the constant fitted on the other families' rows (other rows, where there is one family only);
            None if there are none.
        failures: Rows without an estimate.
        below: Rows whose estimate is below the measurement: a run given that much memory would have failed.
    """

    device: str
    family: str
    constant_bytes: int | None
    errors: ErrorSummary | None
    held_out: ErrorSummary | None
    failures: int
    below: int

    @property
    def exact(self) -> int:
        """Rows whose estimate is the measurement, to the byte; a fitted constant makes one of its rows exact."""
        return round(self.errors.share_exact * self.errors.n) if self.errors else 0


@dataclass(frozen=True, slots=True)
class Score:
    """The table, and the signed error of every row by its line (absent where the estimator refused)."""

    groups: tuple[GroupScore, ...]
    row_errors: dict[int, float]
    constants: dict[str, int]


def fit_constant(rows: Sequence[Estimated]) -> int:
    """The constant in bytes that makes the mean relative error smallest: a median weighed by 1 / measured.

    Raises:
        ValueError: No row has an estimate.
    """
    known = [
        (row.measured_bytes - row.estimated_bytes, 1 / row.measured_bytes)
        for row in rows
        if row.estimated_bytes is not None
    ]
    if not known:
        raise ValueError("no estimates to fit a constant to")
    known.sort()
    sums = np.cumsum([weight for _, weight in known])
    return known[int(np.searchsorted(sums, sums[-1] / 2))][0]


FORMULA = "formula"


def score_others(rows: Sequence[Estimated]) -> dict[str, Score]:
    """The table of every other estimator on the same rows, by its name: the formula, then those that a file published.

    The formula gets a constant per GPU as the trace does; what others published stands as it is.
    """
    found = {FORMULA: score([replace(row, estimated_bytes=row.formula_bytes) for row in rows])}
    for name in dict.fromkeys(name for row in rows for name, _ in row.published):
        theirs = [replace(row, estimated_bytes=dict(row.published).get(name)) for row in rows]
        found[name] = score(theirs, with_constant=False)
    return found


def score(rows: Iterable[Estimated], *, with_constant: bool = True) -> Score:
    """The table: each device's families, each device, and all; the constant is fitted to peaks of the driver's only.

    Args:
        rows: Of any devices.
        with_constant: Whether to fit one; estimates are taken to hold context and modules otherwise.
    """
    rows = sorted(rows, key=lambda row: (row.device, row.family, row.line))
    devices = list(dict.fromkeys(row.device for row in rows))
    constants: dict[str, int] = {}
    fitted: dict[int, float] = {}
    held: dict[int, float] = {}
    for device in devices:
        mine = [row for row in rows if row.device == device]
        shown = [row for row in mine if row.quantity == "device" and row.estimated_bytes is not None]
        if shown and with_constant:
            constants[device] = fit_constant(shown)
        for row in mine:
            if row.estimated_bytes is None:
                continue
            constant = constants.get(device, 0) if row.quantity == "device" else 0
            fitted[row.line] = relative_error(row.estimated_bytes + constant, row.measured_bytes)
            others = _others(row, shown)
            if row.quantity != "device" or not with_constant:
                held[row.line] = fitted[row.line]
            elif others:
                held[row.line] = relative_error(row.estimated_bytes + fit_constant(others), row.measured_bytes)
    groups = []
    for device in devices:
        mine = [row for row in rows if row.device == device]
        families = list(dict.fromkeys(row.family for row in mine))
        for family in families if len(families) > 1 else []:
            some = [row for row in mine if row.family == family]
            groups.append(_group(device, family, some, constants.get(device), fitted, held))
        groups.append(_group(device, "all", mine, constants.get(device), fitted, held))
    if len(devices) > 1:
        groups.append(_group("all", "all", rows, None, fitted, held))
    return Score(tuple(groups), fitted, constants)


def _others(row: Estimated, rows: Sequence[Estimated]) -> list[Estimated]:
    """Rows of other families, or all other rows where there is one family only."""
    return [other for other in rows if other.family != row.family] or [other for other in rows if other is not row]


def _group(
    device: str,
    family: str,
    rows: Sequence[Estimated],
    constant: int | None,
    fitted: dict[int, float],
    held: dict[int, float],
) -> GroupScore:
    errors = [fitted[row.line] for row in rows if row.line in fitted]
    left = [held[row.line] for row in rows if row.line in held]
    return GroupScore(
        device,
        family,
        constant,
        summarise_errors(errors),
        summarise_errors(left),
        failures=sum(row.estimated_bytes is None for row in rows),
        below=sum(error < 0 for error in errors),
    )
