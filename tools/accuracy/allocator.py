"""The trace against torch's real allocator under the stub driver, and the replay against random streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.units import format_bytes
from tools.accuracy.compare import GROUPS, PEAKS, Compared, Tally
from tools.accuracy.page import Goal, Part, percent, share, table

EXACT_SHARE = 0.95


def grid_part(rows: Sequence[Compared], title: str, what: str, limit: float, shares: float = EXACT_SHARE) -> Part:
    """Shares of exact cases, all and by group, and every case that is not exact.

    Args:
        rows: The cases.
        title: The heading.
        what: The cases in words, for the table of goals.
        limit: What the error of the others should stay within.
        shares: What share should be exact.
    """
    part = Part(title)
    tally = Tally.of("all", rows, limit)
    if not tally.count:
        reasons = sorted({str(row.estimate.get("refused") or row.estimate.get("failed")) for row in rows})
        part.say(f"Not run: {'; '.join(reasons)}.")
        part.goals.append(Goal(what, f"{percent(shares)} exact", "not run", None))
        return part
    part.lines += table(
        ["", "cases", "allocated", "reserved", "requested", "allocated and reserved", "worst"], [_row(tally)]
    )
    part.lines.append("")
    part.say(_early(rows))
    part.lines += _by_group(rows, limit)
    part.lines.append("")
    part.lines += _unequal(rows)
    part.lines += _unscored(rows)
    part.goals += _goals(tally, what, limit, shares)
    return part


def _row(tally: Tally) -> list[str]:
    worst = "" if tally.worst is None else percent(tally.worst.worst)
    exact = [share(tally.exact[peak], tally.count) for peak in PEAKS]
    return [tally.name, str(tally.count), *exact, share(tally.both, tally.count), worst]


def _early(rows: Sequence[Compared]) -> str:
    """How often the same estimate is exact for the first steps, while the allocator's blocks still settle."""
    scored = [row for row in rows if row.is_scored]
    counts = [f"{peak} {share(sum(row.is_early_equal(peak) for row in scored), len(scored))}" for peak in PEAKS]
    return (
        f"The same estimates against the second and third step, before the allocator has settled: {', '.join(counts)}."
    )


def _by_group(rows: Sequence[Compared], limit: float) -> list[str]:
    lines: list[list[str]] = []
    for name, key in GROUPS.items():
        for value in sorted({key(row.point) for row in rows}):
            tally = Tally.of(f"{name}: {value}", (row for row in rows if key(row.point) == value), limit)
            if tally.count:
                lines.append(_row(tally))
    return table(["group", "cases", "allocated", "reserved", "requested", "allocated and reserved", "worst"], lines)


def describe(row: Compared) -> str:
    """The case and its device in a line."""
    case = row.point.case
    size = f" at {case.image_size} px" if case.image_size else ""
    return f"{row.point.device}: {case}{size}"


def _unequal(rows: Sequence[Compared]) -> list[str]:
    unequal = [row for row in rows if row.is_scored and not row.is_equal(*PEAKS)]
    if not unequal:
        return ["Every case is exact in all three peaks.", ""]
    listed = [
        [describe(row), peak, f"{row.truth[peak]:,}", f"{row.estimate[peak]:,}", percent(row.error(peak), signed=True)]
        for row in sorted(unequal, key=lambda row: -row.worst)
        for peak in PEAKS
        if not row.is_equal(peak)
    ]
    return ["Not exact:", "", *table(["case", "peak", "torch, B", "estimate, B", "error"], listed), ""]


def _unscored(rows: Sequence[Compared]) -> list[str]:
    others = [row for row in rows if not row.is_scored]
    if not others:
        return []
    lines = ["Without peaks to compare:", ""]
    for row in others:
        fits = row.fits
        if fits is not None:
            said = f"does not fit; estimated reserved {format_bytes(row.estimate['reserved'])}: "
            said += "the estimate agrees" if fits[0] == fits[1] else "**the estimate says that it fits**"
        else:
            said = f"torch: {why_none(row.truth)}; estimate: {why_none(row.estimate)}"
        lines.append(f"- {describe(row)}: {said}")
    return [*lines, ""]


def why_none(answer: dict[str, Any]) -> str:
    """Why an answer has no peaks, in one line."""
    for name in ("impossible", "refused", "failed"):
        if name in answer:
            return " ".join(str(answer[name]).split())[:160]
    return "out of memory" if "oom" in answer else "runs"


def _goals(tally: Tally, what: str, limit: float, shares: float) -> list[Goal]:
    goals = [
        Goal(
            f"{what}: {peak} equal to the byte",
            f"at least {percent(shares)}",
            share(tally.exact[peak], tally.count),
            tally.exact[peak] >= shares * tally.count,
        )
        for peak in ("allocated", "reserved")
    ]
    if shares < 1:
        reached = f"{tally.within}/{tally.unequal} within" if tally.unequal else "no others"
        worst = f", worst {percent(tally.worst.worst)}" if tally.worst else ""
        goals.append(
            Goal(f"{what}: the others", f"within {percent(limit)}", reached + worst, tally.within == tally.unequal)
        )
    return goals
