"""Several machines compared with one: the whole in a line each, and where each line bends and ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.comparison import ClockRole, Comparison
from bench.records import Status
from bench.report.blocks import Block, Bullets, Code, Link, Notice, Paragraph, Strong, Table, Words
from bench.report.contents import Contents, Section
from bench.report.hardware import ENERGY, KNEE_FRAC, MEMORY, SPEED, Hardware, extreme, knees, with_memory_shares
from bench.report.words import integer, known, rate_cell, ratio_words
from bench.units import MISSING, counted

_MAX_LINES = 30
_VERDICTS = ("faster", "slower", "same", "unclear")


def build(contents: Contents) -> Sequence[Block]:
    """Nothing for a single machine."""
    hardware = contents.hardware
    if hardware is None:
        return []
    blocks: list[Block] = [
        Notice("warning", f"{machine} could not be compared with {hardware.baseline}: {reason}")
        for machine, reason in hardware.refused.items()
    ]
    if hardware.comparisons:
        blocks += [_whole(hardware), *_remarks(hardware)]
    return [*blocks, *_lines(contents)]


def _whole(hardware: Hardware) -> Table:
    """A line a machine: the geometric means and how the cases fell."""
    energy = any(ENERGY in found.geomean for found in hardware.comparisons.values())
    head = [
        "machine",
        "throughput (95 % interval)",
        "peak allocated",
        *(["energy a sample"] if energy else []),
        "cases in common",
        *_VERDICTS,
    ]
    rows = [
        [
            machine,
            *(_mean(found, metric) for metric in (SPEED, MEMORY, *([ENERGY] if energy else []))),
            _common(found),
            *_counts(found),
        ]
        for machine, found in hardware.comparisons.items()
    ]
    margin = next(iter(hardware.comparisons.values())).margin
    caption = (
        f"Each machine over {hardware.baseline}: geometric means over the cases that both measured, with intervals "
        "over the cases. A case is faster or slower where its own interval excludes 1 after correction for all cases "
        f"and its middle is beyond the margin of {margin * 100:g} %, the same where it lies within the margin, else "
        "unclear."
    )
    return Table(head, rows, frozenset(range(1, len(head))), caption)


def _mean(found: Comparison, metric: str) -> str:
    mean = found.geomean.get(metric)
    if mean is None or mean.ratio is None:
        return MISSING
    return ratio_words(mean.ratio, *(math.nan if end is None else end for end in (mean.low, mean.high)))


def _common(found: Comparison) -> str:
    mean = found.geomean.get(SPEED)
    return f"{mean.n} of {mean.n_planned}" if mean is not None else "0"


def _counts(found: Comparison) -> list[str]:
    rows = found.cases[(found.cases["metric"] == SPEED) & found.cases["ratio"].notna()]
    counts = rows["verdict"].astype(str).value_counts()
    return [str(int(counts.get(name, 0))) for name in _VERDICTS]


def _remarks(hardware: Hardware) -> list[Block]:
    """What the comparisons note, and what ran on the baseline and not on a machine."""
    notes = dict.fromkeys(note for found in hardware.comparisons.values() for note in found.notes)
    items: list[Words] = list(notes)
    for machine, found in hardware.comparisons.items():
        broken = [item for item in found.missing if item.broken]
        if broken:
            items.append(
                (
                    Strong(f"{machine}: "),
                    f"{len(broken)} cases that ran on {hardware.baseline} did not run here "
                    f"({_tally(item.status for item in broken)}).",
                )
            )
        if clocks := _clocks(found):
            items.append((Strong(f"{machine}: "), clocks))
    text = (
        "Every ratio with its interval and verdict, and the reason where it is unclear, is in ",
        Link("speedup.csv", "figures/speedup.csv"),
        "; ",
        Code("bench compare"),
        " prints them with what differs.",
    )
    return [*([Bullets(items)] if items else []), Paragraph(text)]


_ROLES = {
    ClockRole.CAN_EXPLAIN: "clocks can explain the difference (none in cycles)",
    ClockRole.CANNOT_EXPLAIN: "clocks cannot explain it (the same direction in cycles)",
    ClockRole.OPPOSITE: "the difference in cycles is the opposite one",
}


def _clocks(found: Comparison) -> str:
    """What clocks have to do with the cases that are called different; empty where no clock is known."""
    rows = found.cases[(found.cases["metric"] == SPEED) & found.cases["clocks"].notna()]
    called = rows[rows["verdict"].isin(["faster", "slower"])]
    told = [
        f"{count} of {len(called)}: {text}" for role, text in _ROLES.items() if (count := sum(called["clocks"] == role))
    ]
    hidden = int((rows["clocks"] == ClockRole.HIDES).sum())
    parts = [f"Of the cases that differ in seconds, {'; '.join(told)}."] if told else []
    parts += [f"{counted(hidden, 'case')} the same in seconds differ in cycles."] if hidden else []
    return " ".join(parts)


def _tally(statuses: Any) -> str:
    counts = pd.Series(list(statuses), dtype=str).value_counts()
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts.index, key=lambda name: (-counts[name], name)))


def _lines(contents: Contents) -> list[Block]:
    """A row for each line of the throughput figure: its knee, its best, its end."""
    from bench.report.layout import with_details  # imports matplotlib, which only several machines need here

    frame = with_details(contents.summary)
    frame["knee"] = knees(frame)
    shares = with_memory_shares(contents.summary)["memory_share"]
    frame["memory_share"] = shares.reindex(frame.index)
    lines = [_line(rows) for _, rows in frame.groupby(["panel", "detail", "machine"], sort=False) if rows["knee"].any()]
    if not lines:
        return []
    order = list(dict.fromkeys(zip(frame["panel"], frame["detail"], strict=True)))
    lines.sort(key=lambda line: order.index((line["panel"], line["detail"])))
    detailed = any(line["detail"] for line in lines)
    head = [
        "model and data set",
        *(["with"] if detailed else []),
        "machine",
        "knee at batch",
        "samples/s there",
        "of its memory",
        "fastest at batch",
        "largest batch that ran",
        "out of memory at",
    ]
    rows = [
        [line["panel"], *([line["detail"]] if detailed else []), line["machine"], *line["cells"]]
        for line in lines[:_MAX_LINES]
    ]
    texts = 2 + detailed
    caption = (
        f"The knee is the smallest batch size that reaches {KNEE_FRAC * 100:.0f} % of the line's best rate. "
        "A line whose fastest batch is its largest may still be rising."
        + (f" The first {_MAX_LINES} of {len(lines)} lines; all are in curves.csv." if len(lines) > _MAX_LINES else "")
    )
    return [Table(head, rows, frozenset(range(texts, len(head))), caption)]


def _line(rows: pd.DataFrame) -> Mapping[str, Any]:
    knee = rows[rows["knee"]].iloc[0]
    timed = rows[rows["samples_per_s"].notna()]
    best = extreme(timed, "samples_per_s")
    out = rows.loc[rows["status"] == Status.OOM, "batch_size"]
    share = f"{knee['memory_share'] * 100:.0f} %" if known(knee["memory_share"]) else MISSING
    cells = [
        integer(knee["batch_size"]),
        rate_cell(knee.to_dict()),
        share,
        integer(best["batch_size"]),
        integer(timed["batch_size"].max()),
        integer(out.min()) if len(out) else MISSING,
    ]
    from bench.report.layout import LINE

    return {**{name: str(knee[name]) for name in LINE}, "cells": cells}


SECTION = Section(order=35, title="Machines compared", build=build)
