"""What loading costs a step, what of it limits, and how many workers would do."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import CaseLabels
from bench.analysis.loading import Loading, loading_costs
from bench.report.blocks import Block, Bullets, Fold, Paragraph, Strong, Table, Words
from bench.report.contents import Contents, Section
from bench.report.words import integer, ratio_words, seconds_cell
from bench.stats import Interval, Verdict
from bench.units import MISSING, counted

_MAX_SENTENCES = 6
_MAX_ROWS = 30

_LIMITS = {
    "decoding": "Making batches (reading, decoding, transforming, collating) limits, not copying them.",
    "copying": "Copying batches limits, not making them.",
    "both": "Making batches and copying them both cost time.",
    "neither": "Neither making batches nor copying them costs time.",
    "unclear": "Whether making batches or copying them limits is unclear: more processes tell.",
}


def build(contents: Contents) -> Sequence[Block]:
    """A sentence for the cases that wait most, and a table of all; nothing where no case has a loader."""
    found = loading_costs(contents.frame, contents.summary)
    if not found:
        return []
    labels = CaseLabels(contents.summary)
    most = sorted(found, key=lambda each: -each.waiting.middle)
    lines: list[Words] = [(Strong(f"{labels.case(each.row)}: "), verdict_words(each)) for each in most[:_MAX_SENTENCES]]
    more = len(found) - len(lines)
    beside = any(each.cost or each.decoding for each in found)
    return [
        Bullets(lines),
        *([Paragraph(f"{counted(more, 'case')} more, which wait less, are in the table.")] if more else []),
        *([Fold("All cases, and the model behind the number of workers", _details(found, labels))] if beside else []),
    ]


def verdict_words(loading: Loading) -> str:
    """The share of a step spent waiting; where cases stand beside it, also the cost, the limit and the workers."""
    parts = [f"a step spends {_share_words(loading.waiting)} of its time waiting for its batch."]
    if loading.cost is not None:
        parts.append(_cost_words(loading))
    if loading.decoding is not None and loading.copying is not None:
        parts.append(_LIMITS[loading.limit])
    elif loading.cost is not None:
        parts.append("Without the case with cached input, what limits is unknown.")
    if loading.cost is not None or loading.decoding is not None:
        parts.append(_worker_words(loading))
    return " ".join(parts)


def _share_words(share: Interval) -> str:
    """`41 % (95 % interval 38 to 44 %, n = 3)`."""
    middle = f"{share.middle * 100:.0f} %"
    if share.low is None or share.high is None:
        return f"{middle} (one process, no interval)"
    low, high = max(0.0, share.low), min(1.0, share.high)
    return f"{middle} (95 % interval {low * 100:.0f} to {high * 100:.0f} %, n = {share.n})"


def _cost_words(loading: Loading) -> str:
    cost = loading.cost
    assert cost is not None and cost.ratio is not None
    ratio = ratio_words(cost.ratio, cost.low, cost.high)
    if cost.verdict is Verdict.SAME:
        return f"It takes as long as with synthetic input: {ratio}."
    if cost.verdict is Verdict.UNCLEAR:
        return f"Whether it takes longer than with synthetic input is unclear: {ratio}."
    return f"It takes {ratio} as long as with synthetic input."


def _worker_words(loading: Loading) -> str:
    had = "it had none" if loading.workers == 0 else f"it had {loading.workers}"
    if not loading.made_s:
        return f"How many workers would do is unknown ({had}): how long a batch takes to make was not recorded."
    if loading.enough is None:
        return f"How many workers would do takes two processes of each case ({had})."
    if not loading.holds:
        predicted, took = seconds_cell(loading.predicted_step_s), seconds_cell(loading.typical_step_s("loader"))
        why = f"the model gives {predicted} for this step, which took {took}"
        return f"How many workers would do is unknown ({had}): {why}."
    middle, low, high = loading.enough
    ends = "" if low == high else f" ({low} to {high})"
    said = f"By the model, {counted(middle, 'worker')}{ends} would do; {had}."
    cores, own = loading.usable_cores, int(loading.on_cpu)
    if cores is not None and middle + own > cores:
        beside = " beside the step" if own else ""
        return f"{said} That is more than the {cores} processors of the machine allow{beside}: loading stays the limit."
    return f"{said} That takes processors that the step, on the CPU too, leaves free." if own else said


def _details(found: Sequence[Loading], labels: CaseLabels) -> list[Block]:
    head = [
        *("case", "workers", "waiting", "step, synthetic", "step, cached", "step, loader", "step, by the model"),
        *("a batch in one worker", "workers that would do"),
    ]
    rows = [
        [
            labels.case(each.row),
            integer(each.workers),
            f"{each.waiting.middle * 100:.0f} %",
            *(seconds_cell(each.typical_step_s(name)) for name in ("synthetic", "cached", "loader")),
            seconds_cell(each.predicted_step_s),
            seconds_cell(each.typical_made_s),
            MISSING if each.enough is None or not each.holds else "{} ({} to {})".format(*each.enough),
        ]
        for each in found[:_MAX_ROWS]
    ]
    left = f" {len(found) - _MAX_ROWS} more are in loading.csv." if len(found) > _MAX_ROWS else ""
    caption = (
        "Seconds are of the measured window, per step; geometric means over processes. The model: w workers deliver a "
        "batch every m / w seconds, where m is what one takes to make it; a step then takes the longer of that and of "
        "its time with the batch at hand (cached input, else synthetic), and without workers the sum of both. Where "
        "the model's step is not the loader's (beyond its interval and a tenth), its number of workers does not hold: "
        "workers that share processors, with each other or with the step, make batches more slowly and slow the step."
        f"{left}"
    )
    return [Table(head, rows, frozenset(range(1, len(head))), caption)]


SECTION = Section(order=39, title="What loading costs", build=build)
"""Beside what else a step's time goes to: how close it comes to the hardware."""
